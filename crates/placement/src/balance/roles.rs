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
            if picture.is_done() || !picture.is_leaving(group.primary()) {
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
        if picture.tables[t].ignored || picture.is_done() {
            continue;
        }
        let mut edges = Edges::of(picture, vec![t]);
        // The fullest node from which a path leads to one with two less.
        while let Some(path) = {
            let count = |node: At| picture.tables[t].primaries[node];
            full_ones(&picture.open, count).into_iter().find_map(|from| {
                let ends = |_, node: At| count(node) + 2 <= count(from);
                edges.path(&[(t, from)], |_, _| false, |_, _| false, ends)
            })
        } {
            edges.walk(picture, &path);
            if picture.is_done() {
                break;
            }
        }
    }
    if !picture.is_done() {
        across_tables(picture);
    }
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
    let mut edges = Edges::of(picture, tables.clone());
    while let Some(path) = {
        let may_lose = |t: usize, node: At| picture.tables[t].primaries[node] > bounds[t].0;
        let may_gain = |t: usize, node: At| picture.tables[t].primaries[node] < bounds[t].1;
        let count = |node: At| picture.primaries[node];
        full_ones(&picture.open, count).into_iter().find_map(|from| {
            let starts: Vec<Slot> =
                tables.iter().filter(|t| may_lose(**t, from)).map(|t| (*t, from)).collect();
            let ends = |t, node: At| may_gain(t, node) && count(node) + 2 <= count(from);
            edges.path(&starts, may_gain, may_lose, ends)
        })
    } {
        edges.walk(picture, &path);
        if picture.is_done() {
            break;
        }
    }
}

/// The nodes that have at least two more than some other, those with most first.
fn full_ones(nodes: &[At], count: impl Fn(At) -> u32) -> Vec<At> {
    let least = nodes.iter().map(|node| count(*node)).min().unwrap_or(0);
    let mut full: Vec<At> = nodes.iter().copied().filter(|node| count(*node) >= least + 2).collect();
    full.sort_by_key(|node| (std::cmp::Reverse(count(*node)), *node));
    full
}

/// A node within a table.
type Slot = (usize, At);

/// The groups of a table whose primary is on one node and a secondary on another, both open.
struct Edges {
    tables: Vec<usize>,
    nodes: usize,
    /// By place in `tables` and node of the primary: node of the secondary to groups.
    groups: Vec<Vec<BTreeMap<At, BTreeSet<usize>>>>,
}

impl Edges {
    /// `tables` in growing order.
    fn of(picture: &Picture, tables: Vec<usize>) -> Self {
        let nodes = picture.primaries.len();
        let groups = vec![vec![BTreeMap::new(); nodes]; tables.len()];
        let mut edges = Self { tables, nodes, groups };
        for place in 0..edges.tables.len() {
            let t = edges.tables[place];
            for g in 0..picture.tables[t].groups.len() {
                edges.add(picture, t, g);
            }
        }
        edges
    }

    fn place(&self, t: usize) -> usize {
        self.tables.binary_search(&t).unwrap_or(0)
    }

    fn add(&mut self, picture: &Picture, t: usize, g: usize) {
        let group = &picture.tables[t].groups[g];
        let from = group.primary();
        if !picture.is_open(from) {
            return;
        }
        let place = self.place(t);
        for to in group.members.iter().skip(1).filter(|node| picture.is_open(**node)) {
            self.groups[place][from].entry(*to).or_default().insert(g);
        }
    }

    fn remove(&mut self, picture: &Picture, t: usize, g: usize) {
        let place = self.place(t);
        let from = picture.tables[t].groups[g].primary();
        self.groups[place][from].retain(|_, groups| {
            groups.remove(&g);
            !groups.is_empty()
        });
    }

    /// The shortest path from one of the starts to an end. At a node it may go on in another table, once, if the first
    /// may gain a primary there and the other may lose one.
    fn path(
        &self,
        starts: &[Slot],
        may_gain: impl Fn(usize, At) -> bool,
        may_lose: impl Fn(usize, At) -> bool,
        is_end: impl Fn(usize, At) -> bool,
    ) -> Option<Vec<Slot>> {
        #[derive(Clone, Copy, PartialEq)]
        enum From {
            Nowhere,
            Start,
            Slot(usize),
        }
        let mut came_from = vec![From::Nowhere; self.tables.len() * self.nodes];
        let mut changed = vec![false; self.nodes];
        let mut queue = VecDeque::new();
        for (t, node) in starts {
            let slot = self.place(*t) * self.nodes + node;
            came_from[slot] = From::Start;
            queue.push_back(slot);
        }
        while let Some(slot) = queue.pop_front() {
            let (place, node) = (slot / self.nodes, slot % self.nodes);
            let t = self.tables[place];
            let is_start = came_from[slot] == From::Start;
            if !is_start && is_end(t, node) {
                let mut path = vec![(t, node)];
                let mut at = slot;
                while let From::Slot(before) = came_from[at] {
                    path.push((self.tables[before / self.nodes], before % self.nodes));
                    at = before;
                }
                path.reverse();
                return Some(path);
            }
            let mut visit = |next: usize| {
                if came_from[next] == From::Nowhere {
                    came_from[next] = From::Slot(slot);
                    queue.push_back(next);
                }
            };
            self.groups[place][node].keys().for_each(|to| visit(place * self.nodes + to));
            if !is_start && !changed[node] && may_gain(t, node) {
                changed[node] = true;
                let others = (0..self.tables.len()).filter(|other| *other != place);
                others.filter(|other| may_lose(self.tables[*other], node)).for_each(|other| {
                    visit(other * self.nodes + node);
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
            let groups = self.groups[self.place(t)][from].get(&to);
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
