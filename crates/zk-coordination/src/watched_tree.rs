//! A tree with those who wait for a change of it.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use crate::memory_tree::{Changed, MemoryTree};
use crate::store::Watch;

type Waiting = BTreeMap<String, Vec<oneshot::Sender<()>>>;

#[derive(Debug, Default)]
pub(crate) struct WatchedTree {
    pub tree: MemoryTree,
    nodes: Waiting,
    children: Waiting,
}

impl WatchedTree {
    pub fn of(tree: MemoryTree) -> Self {
        Self { tree, ..Self::default() }
    }

    pub fn watch_node(&mut self, path: &str) -> Watch {
        add(&mut self.nodes, path)
    }

    pub fn watch_children(&mut self, path: &str) -> Watch {
        add(&mut self.children, path)
    }

    pub fn fire(&mut self, changed: &Changed) {
        for (waiting, paths) in [(&mut self.nodes, &changed.nodes), (&mut self.children, &changed.parents)] {
            for sender in paths.iter().filter_map(|path| waiting.remove(path)).flatten() {
                // Nobody may wait any more.
                let _ = sender.send(());
            }
        }
    }
}

fn add(waiting: &mut Waiting, path: &str) -> Watch {
    let (sender, receiver) = oneshot::channel();
    let list = waiting.entry(path.into()).or_default();
    // Who gave up waiting is dropped when the next one comes, so that the list stays bounded.
    list.retain(|sender| !sender.is_closed());
    list.push(sender);
    Watch(receiver)
}
