//! The cluster in numbers, as it would be after the moves so far.

use std::collections::{BTreeMap, BTreeSet};

use pegasus_types::{Gpid, Node, PartitionConfig};

use super::{DiskOf, Kind, Move, Nodes, Options};
use crate::view::{ClusterView, Loads};

/// A node: its place in [`Picture::nodes`].
pub(super) type At = usize;

#[derive(Debug)]
pub(super) struct Picture {
    nodes: Vec<Node>,
    /// Among which everything is spread.
    pub open: Vec<At>,
    is_open: Vec<bool>,
    is_leaving: Vec<bool>,
    pub tables: Vec<TablePicture>,
    /// Over all tables, by node.
    pub primaries: Vec<u32>,
    pub copies: Vec<u32>,
    /// Over all tables, by disk: primaries and copies.
    disks: Vec<(u32, u32)>,
    /// Of each node: the disk of copies of which no report tells.
    unknown_disk: Vec<usize>,
    pub moves: Vec<Move>,
    enough: usize,
}

#[derive(Debug)]
pub(super) struct TablePicture {
    pub ignored: bool,
    pub groups: Vec<Group>,
    /// By node.
    pub primaries: Vec<u32>,
    pub copies: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Group {
    gpid: Gpid,
    /// The primary first.
    pub members: Vec<At>,
    /// Of each member: its disk.
    disks: Vec<usize>,
}

impl Group {
    pub fn primary(&self) -> At {
        self.members[0]
    }

    pub fn holds(&self, node: At) -> bool {
        self.members.contains(&node)
    }

    fn place(&self, node: At) -> usize {
        self.members.iter().position(|member| *member == node).unwrap_or(0)
    }
}

impl Picture {
    pub fn new(view: &ClusterView, around: &Nodes, disk_of: &DiskOf<'_>, options: &Options) -> Self {
        let mut names: BTreeSet<&Node> = around.open.iter().chain(&around.leaving).collect();
        names.extend(view.live_partitions().flat_map(|(_, config)| config.members()));
        let nodes: Vec<Node> = names.into_iter().cloned().collect();
        let at: BTreeMap<&Node, At> = nodes.iter().zip(0..).collect();
        let is_leaving: Vec<bool> = nodes.iter().map(|node| around.leaving.contains(node)).collect();
        let is_open: Vec<bool> = nodes
            .iter()
            .zip(&is_leaving)
            .map(|(node, leaving)| around.open.contains(node) && !leaving)
            .collect();
        let mut disk_ids: BTreeMap<(At, &str), usize> = BTreeMap::new();
        let unknown_disk: Vec<usize> = (0..nodes.len()).collect();
        for at in 0..nodes.len() {
            disk_ids.insert((at, ""), at);
        }
        let mut tables = Vec::new();
        for table in view.tables().filter(|table| !table.is_dropped()) {
            let mut groups = Vec::new();
            for config in table.partitions.iter().filter(|config| config.primary.is_some()) {
                let config: &PartitionConfig = config;
                let members: Vec<At> = config.members().filter_map(|node| at.get(node).copied()).collect();
                let mut disk = |(node, at): (&Node, &At)| {
                    let next = disk_ids.len();
                    *disk_ids.entry((*at, disk_of(config.gpid, node).unwrap_or(""))).or_insert(next)
                };
                let disks = config.members().zip(&members).map(&mut disk).collect();
                groups.push(Group { gpid: config.gpid, members, disks });
            }
            let ignored = options.ignored.contains(&table.info.app_id);
            tables.push(TablePicture {
                ignored,
                groups,
                primaries: vec![0; nodes.len()],
                copies: vec![0; nodes.len()],
            });
        }
        let mut picture = Self {
            open: (0..nodes.len()).filter(|at| is_open[*at]).collect(),
            is_open,
            is_leaving,
            primaries: vec![0; nodes.len()],
            copies: vec![0; nodes.len()],
            disks: vec![(0, 0); disk_ids.len()],
            unknown_disk,
            tables,
            moves: Vec::new(),
            enough: options.enough,
            nodes,
        };
        picture.count();
        picture
    }

    fn count(&mut self) {
        for table in &mut self.tables {
            for group in &table.groups {
                table.primaries[group.primary()] += 1;
                self.primaries[group.primary()] += 1;
                self.disks[group.disks[0]].0 += 1;
                for (member, disk) in group.members.iter().zip(&group.disks) {
                    table.copies[*member] += 1;
                    self.copies[*member] += 1;
                    self.disks[*disk].1 += 1;
                }
            }
        }
    }

    /// No more moves are asked for.
    pub fn is_done(&self) -> bool {
        self.moves.len() >= self.enough
    }

    pub fn is_open(&self, node: At) -> bool {
        self.is_open[node]
    }

    pub fn is_leaving(&self, node: At) -> bool {
        self.is_leaving[node]
    }

    /// The role of group `g` of table `t` goes to the secondary `to`.
    pub fn hand_over(&mut self, t: usize, g: usize, to: At) {
        let table = &mut self.tables[t];
        let group = &mut table.groups[g];
        let (from, place) = (group.primary(), group.place(to));
        self.disks[group.disks[0]].0 -= 1;
        group.members.swap(0, place);
        group.disks.swap(0, place);
        self.disks[group.disks[0]].0 += 1;
        table.primaries[from] -= 1;
        table.primaries[to] += 1;
        self.primaries[from] -= 1;
        self.primaries[to] += 1;
        let gpid = group.gpid;
        self.note(gpid, Kind::MovePrimary, from, to);
    }

    /// The copy of group `g` of table `t` on `from`, and the role if it has it, goes to `to`, which has none.
    pub fn move_copy(&mut self, t: usize, g: usize, from: At, to: At) {
        let table = &mut self.tables[t];
        let group = &mut table.groups[g];
        let place = group.place(from);
        let is_primary = place == 0;
        let (old, new) = (group.disks[place], self.unknown_disk[to]);
        group.members[place] = to;
        group.disks[place] = new;
        self.disks[old].1 -= 1;
        self.disks[new].1 += 1;
        table.copies[from] -= 1;
        table.copies[to] += 1;
        self.copies[from] -= 1;
        self.copies[to] += 1;
        if is_primary {
            self.disks[old].0 -= 1;
            self.disks[new].0 += 1;
            table.primaries[from] -= 1;
            table.primaries[to] += 1;
            self.primaries[from] -= 1;
            self.primaries[to] += 1;
        }
        let gpid = group.gpid;
        self.note(gpid, if is_primary { Kind::CopyPrimary } else { Kind::CopySecondary }, from, to);
    }

    fn note(&mut self, gpid: Gpid, kind: Kind, from: At, to: At) {
        let (from, to) = (self.nodes[from].clone(), self.nodes[to].clone());
        self.moves.push(Move { gpid, kind, from, to });
    }

    /// (primaries, copies) on the disk where `node` has its copy of the group.
    pub fn on_disk(&self, t: usize, g: usize, node: At) -> (u32, u32) {
        let group = &self.tables[t].groups[g];
        self.disks[group.disks[group.place(node)]]
    }

    pub fn loads(&self) -> Loads {
        let mut loads = Loads::default();
        for group in self.tables.iter().flat_map(|table| &table.groups) {
            for (place, member) in group.members.iter().enumerate() {
                let node = &self.nodes[*member];
                if place == 0 { loads.add_primary(node) } else { loads.add_copy(node) }
            }
        }
        loads
    }
}
