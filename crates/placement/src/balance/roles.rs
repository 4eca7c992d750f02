//! Hand-overs: who of the members is primary.
//!
//! The possible hand-overs are edges between slots. A slot is a node within a table; an edge leads from the slot of
//! a group's primary to the slot of one of its secondaries. A path of hand-overs takes one primary from its first
//! node and gives one to its last; nodes between keep their number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::picture::{At, Picture};

/// Every primary on a leaving node goes to one of its secondaries that is open, if there is one; else to one
/// that does not leave.
pub(super) fn off_leaving(picture: &mut Picture) {
    for t in 0..picture.tables.len() {
        for g in 0..picture.tables[t].groups.len() {
            let group = &picture.tables[t].groups[g];
            if !picture.is_leaving(group.primary()) {
                continue;
            }
            let heirs = group.members.iter().filter(|node| !picture.is_leaving(**node));
            let load = |node: &&At| {
                (!picture.is_open(**node), picture.tables[t].primaries[**node], picture.primaries[**node])
            };
            if let Some(to) = heirs.min_by_key(load).copied() {
                picture.hand_over(t, g, to);
            }
        }
    }
}

/// Primaries of each table, then all primaries, are as even between open nodes as hand-overs can make them.
pub(super) fn spread(picture: &mut Picture) {
    for t in 0..picture.tables.len() {
        if picture.tables[t].ignored {
            continue;
        }
        let mut edges = Edges::of(picture, [t]);
        // The fullest node from which a path leads to one with two less.
        while let Some(path) = {
            let count = |node: At| picture.tables[t].primaries[node];
            by_count(&picture.open, count).into_iter().find_map(|from| {
                let starts = [(t, from)];
                edges.path(&starts, |_, _| false, |_, node| count(node) + 2 <= count(from))
            })
        } {
            edges.walk(picture, &path);
        }
    }
    across_tables(picture);
}

/// Over the cluster. A path may change the table at a node that stays within the table's bounds.
fn across_tables(picture: &mut Picture) {
    let tables: Vec<usize> = (0..picture.tables.len()).filter(|t| !picture.tables[*t].ignored).collect();
    let bounds: Vec<(u32, u32)> = picture
        .tables
        .iter()
        .map(|table| {
            let counts = || picture.open.iter().map(|node| table.primaries[*node]);
            (counts().min().unwrap_or(0), counts().max().unwrap_or(0))
        })
        .collect();
    let mut edges = Edges::of(picture, tables.iter().copied());
    while let Some(path) = {
        let may_lose = |t: usize, node: At| picture.tables[t].primaries[node] > bounds[t].0;
        let may_gain = |t: usize, node: At| picture.tables[t].primaries[node] < bounds[t].1;
        by_count(&picture.open, |node| picture.primaries[node]).into_iter().find_map(|from| {
            let starts: Vec<Slot> =
                tables.iter().filter(|t| may_lose(**t, from)).map(|t| (*t, from)).collect();
            let ends =
                |t, node: At| may_gain(t, node) && picture.primaries[node] + 2 <= picture.primaries[from];
            edges.path(&starts, |slot, next| may_gain(slot.0, slot.1) && may_lose(next, slot.1), ends)
        })
    } {
        edges.walk(picture, &path);
    }
}

/// The nodes, those with most first.
fn by_count(nodes: &[At], count: impl Fn(At) -> u32) -> Vec<At> {
    let mut nodes = nodes.to_vec();
    nodes.sort_by_key(|node| (std::cmp::Reverse(count(*node)), *node));
    nodes
}

/// A node within a table.
type Slot = (usize, At);

/// The groups of a table whose primary is on one node and a secondary on another, both open.
struct Edges(BTreeMap<usize, BTreeMap<At, BTreeMap<At, BTreeSet<usize>>>>);

impl Edges {
    fn of(picture: &Picture, tables: impl IntoIterator<Item = usize>) -> Self {
        let mut edges = Self(BTreeMap::new());
        for t in tables {
            edges.0.entry(t).or_default();
            for g in 0..picture.tables[t].groups.len() {
                edges.add(picture, t, g);
            }
        }
        edges
    }

    fn add(&mut self, picture: &Picture, t: usize, g: usize) {
        let group = &picture.tables[t].groups[g];
        let from = group.primary();
        if !picture.is_open(from) {
            return;
        }
        let table = self.0.entry(t).or_default().entry(from).or_default();
        for to in group.members.iter().skip(1).filter(|node| picture.is_open(**node)) {
            table.entry(*to).or_default().insert(g);
        }
    }

    fn remove(&mut self, picture: &Picture, t: usize, g: usize) {
        let group = &picture.tables[t].groups[g];
        let Some(table) = self.0.get_mut(&t).and_then(|table| table.get_mut(&group.primary())) else {
            return;
        };
        table.retain(|_, groups| {
            groups.remove(&g);
            !groups.is_empty()
        });
    }

    /// The shortest path from one of the starts to an end. At a node it may go on in another table if `changes` allows.
    fn path(
        &self,
        starts: &[Slot],
        changes: impl Fn(Slot, usize) -> bool,
        is_end: impl Fn(usize, At) -> bool,
    ) -> Option<Vec<Slot>> {
        let mut came_from: BTreeMap<Slot, Option<Slot>> = starts.iter().map(|start| (*start, None)).collect();
        let mut queue: VecDeque<Slot> = starts.iter().copied().collect();
        while let Some(slot) = queue.pop_front() {
            let (t, node) = slot;
            if came_from.get(&slot).is_some_and(Option::is_some) && is_end(t, node) {
                let mut path = vec![slot];
                while let Some(Some(before)) = path.last().and_then(|last| came_from.get(last)) {
                    path.push(*before);
                }
                path.reverse();
                return Some(path);
            }
            let within = self.0.get(&t).and_then(|table| table.get(&node));
            let within = within.into_iter().flat_map(|to| to.keys()).map(|to| (t, *to));
            let arrived = !starts.contains(&slot);
            let across = self.0.keys().filter(|next| arrived && **next != t && changes(slot, **next));
            for next in within.chain(across.map(|next| (*next, node))) {
                came_from.entry(next).or_insert_with(|| {
                    queue.push_back(next);
                    Some(slot)
                });
            }
        }
        None
    }

    /// Does the hand-overs of a path.
    fn walk(&mut self, picture: &mut Picture, path: &[Slot]) {
        for pair in path.windows(2) {
            let [(t, from), (next, to)] = *pair else { continue };
            if t != next {
                continue;
            }
            let groups = self.0.get(&t).and_then(|table| table.get(&from)?.get(&to));
            // Off a disk with many primaries, onto one with few.
            let best = groups.into_iter().flatten().copied().min_by_key(|g| {
                let (off, onto) = (picture.on_disk(t, *g, from).0, picture.on_disk(t, *g, to).0);
                (std::cmp::Reverse(off), onto, *g)
            });
            let Some(g) = best else { continue };
            self.remove(picture, t, g);
            picture.hand_over(t, g, to);
            self.add(picture, t, g);
        }
    }
}
