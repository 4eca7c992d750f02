//! What chance does to the disk of a host, a [`MemDisk`] with the log of `pegasus_mutation_log`.

use pegasus_mutation_log::mem_disk::{MemDisk, SECTOR};

use crate::dice::Dice;

/// Something that was written comes back otherwise: a bit, a sector of zeros, or a sector that cannot be read.
/// Gives what, or None when there is nothing to spoil.
pub fn damage(disk: &MemDisk, dice: &mut Dice) -> Option<String> {
    let written: Vec<(String, usize)> = disk.lens().into_iter().filter(|(_, len)| *len > 0).collect();
    let (name, len) = dice.pick(&written)?;
    let at = usize::try_from(dice.below(*len as u64)).ok()?;
    let sector = at / SECTOR * SECTOR;
    let what = match dice.below(3) {
        0 => {
            disk.damage(name, |data| data[at] ^= 1 << dice.below(8));
            format!("a bit of {name} at {at}")
        }
        1 => {
            disk.damage(name, |data| data[sector..(sector + SECTOR).min(*len)].fill(0));
            format!("zeros in {name} at {sector}")
        }
        _ => {
            disk.spoil(name, at);
            format!("{name} cannot be read at {sector}")
        }
    };
    Some(what)
}

/// The machine loses power: each write that was not synced reaches the disk whole, in part, or not at all.
pub fn lose_power(disk: &MemDisk, dice: &mut Dice) {
    disk.crash(|len| match len {
        // A name.
        0 => usize::from(dice.permille(500)),
        _ => match dice.below(3) {
            0 => 0,
            1 => len,
            _ => usize::try_from(dice.below(len as u64)).unwrap_or(0),
        },
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io;

    use pegasus_mutation_log::Disk;
    use pegasus_mutation_log::mem_disk::Faults;

    use super::*;

    #[test]
    fn a_full_disk_takes_no_more_and_a_bad_sector_is_good_again_when_written() {
        let disk = MemDisk::default();
        let file = disk.create("a").unwrap();
        file.write_all_at(0, &[7; 2_000]).unwrap();
        disk.set_faults(Faults { full: true, ..Faults::default() });
        assert_eq!(file.write_all_at(1_990, &[1; 20]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.create("b").unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_all_at(0, &[1; 20]).unwrap();
        disk.set_faults(Faults::default());
        let mut found = BTreeSet::new();
        for seed in 0..20 {
            let what = damage(&disk, &mut Dice::new(seed)).unwrap();
            found.extend(["bit", "zeros", "cannot be read"].into_iter().filter(|kind| what.contains(kind)));
        }
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(file.read_exact_at(0, &mut [0; 2_000]).is_err());
        let len = usize::try_from(file.len().unwrap()).unwrap();
        file.write_all_at(0, &vec![0; len]).unwrap();
        file.read_exact_at(0, &mut vec![0; len]).unwrap();
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may_be_torn() {
        let mut torn = 0;
        for seed in 0..50 {
            let disk = MemDisk::default();
            let file = disk.create("a").unwrap();
            file.write_all_at(0, b"synced").unwrap();
            file.sync().unwrap();
            disk.sync_dir().unwrap();
            file.write_all_at(3, b"lost, perhaps").unwrap();
            disk.create("b").unwrap();
            lose_power(&disk, &mut Dice::new(seed));
            let file = disk.open("a").unwrap();
            let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
            file.read_exact_at(0, &mut bytes).unwrap();
            let whole = b"synlost, perhaps";
            let kept = bytes.iter().zip(whole).skip(3).take_while(|(a, b)| a == b).count();
            assert!(bytes.len() >= 6 && bytes[..3] == *b"syn");
            torn += usize::from(kept > 0 && kept < 13);
        }
        assert!(torn > 5, "{torn}");
    }
}
