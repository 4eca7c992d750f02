//! Moves of whole copies.

use std::cmp::Reverse;

use super::picture::{At, Picture};

/// Every copy on a leaving node goes to an open one that has none of that group. Returns how many cannot.
pub(super) fn off_leaving(picture: &mut Picture) -> usize {
    let mut unplaced = 0;
    for t in 0..picture.tables.len() {
        for g in 0..picture.tables[t].groups.len() {
            if picture.is_done() {
                return unplaced;
            }
            for place in 0..picture.tables[t].groups[g].members.len() {
                let from = picture.tables[t].groups[g].members[place];
                if !picture.is_leaving(from) {
                    continue;
                }
                let group = &picture.tables[t].groups[g];
                let load = |node: &&At| (picture.tables[t].copies[**node], picture.copies[**node]);
                let free = picture.open.iter().filter(|node| !group.holds(**node));
                match free.min_by_key(load).copied() {
                    Some(to) => picture.move_copy(t, g, from, to),
                    None => unplaced += 1,
                }
            }
        }
    }
    unplaced
}

/// Copies of each table, then all copies, differ by one at most between open nodes.
pub(super) fn spread(picture: &mut Picture) {
    for t in 0..picture.tables.len() {
        if picture.tables[t].ignored {
            continue;
        }
        while !picture.is_done() {
            let count = |node: &At| (picture.tables[t].copies[*node], picture.copies[*node]);
            let fullest = picture.open.iter().copied().max_by_key(|node| (count(node), Reverse(*node)));
            let emptiest = picture.open.iter().copied().min_by_key(|node| (count(node), *node));
            let (Some(from), Some(to)) = (fullest, emptiest) else { break };
            if count(&from).0 <= count(&to).0 + 1 || !move_one(picture, t, from, to) {
                break;
            }
        }
    }
    // Over the cluster: between two nodes that differ, in a table of which one has one more than the other, so
    // that the table stays even.
    while !picture.is_done() {
        let count = |node: &At| picture.copies[*node];
        let fullest = picture.open.iter().copied().max_by_key(|node| (count(node), Reverse(*node)));
        let emptiest = picture.open.iter().copied().min_by_key(|node| (count(node), *node));
        let (Some(from), Some(to)) = (fullest, emptiest) else { break };
        if count(&from) <= count(&to) + 1 {
            break;
        }
        let tables = 0..picture.tables.len();
        let uneven = tables.filter(|t| {
            let table = &picture.tables[*t];
            !table.ignored && table.copies[from] > table.copies[to]
        });
        let uneven: Vec<usize> = uneven.collect();
        if !uneven.into_iter().any(|t| move_one(picture, t, from, to)) {
            break;
        }
    }
}

/// Moves one copy of the table: a secondary rather than a primary, from the fullest disk. False when all that
/// is on `from` is on `to`, too.
fn move_one(picture: &mut Picture, t: usize, from: At, to: At) -> bool {
    let groups = picture.tables[t].groups.iter().enumerate();
    let movable = groups.filter(|(_, group)| group.holds(from) && !group.holds(to));
    let best = movable
        .min_by_key(|(g, group)| (group.primary() == from, Reverse(picture.on_disk(t, *g, from).1), *g));
    let Some((g, _)) = best else { return false };
    picture.move_copy(t, g, from, to);
    true
}
