use pegasus_types::Gpid;
use std::time::Duration;

use super::*;
use crate::replica_meta::tests::sample;

fn node() -> Node {
    Node::new("127.0.0.1:34801")
}

fn spec(root: &Path, tag: &str) -> DirSpec {
    DirSpec { tag: tag.to_owned(), path: root.join(tag) }
}

fn open(specs: &[DirSpec]) -> Result<DataDirs, DataDirError> {
    DataDirs::open(specs, &node(), 0)
}

/// As when a table is created: none is there yet when the next disk is chosen.
#[test]
fn replicas_that_are_made_at_once_spread_over_the_disks() {
    let root = tempfile::tempdir().unwrap();
    let dirs = open(&[spec(root.path(), "a"), spec(root.path(), "b")]).unwrap();
    let all_chosen = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for index in 0..8 {
            let (dirs, all_chosen) = (&dirs, &all_chosen);
            scope.spawn(move || {
                let make = |dir: &DataDir| {
                    all_chosen.wait();
                    dir.create_replica(&sample(Gpid::new(1, index))).unwrap();
                };
                dirs.place_new(make).unwrap();
            });
        }
    });
    for dir in dirs.iter() {
        assert_eq!(dir.replica_count().unwrap(), 4, "{}", dir.tag());
    }
    assert_eq!(dirs.place_new(|dir| dir.making.load(std::sync::atomic::Ordering::Relaxed)), Some(1));
}

#[test]
fn a_directory_keeps_its_identity() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a"), spec(root.path(), "b")];
    let dirs = open(&specs).unwrap();
    let ids: Vec<_> = dirs.iter().map(DataDir::disk_id).collect();
    assert!(ids[0].is_some() && ids[1].is_some() && ids[0] != ids[1]);
    assert_eq!((dirs.cluster_id(), dirs.get("a").unwrap().rebooted()), (None, true), "never used before");
    dirs.bind_cluster("cluster-1").unwrap();
    dirs.note_boot(false);
    drop(dirs);

    let dirs = open(&specs).unwrap();
    assert_eq!(dirs.iter().map(DataDir::disk_id).collect::<Vec<_>>(), ids);
    assert!(!dirs.get("a").unwrap().rebooted());
    assert_eq!(dirs.cluster_id().as_deref(), Some("cluster-1"));
    dirs.bind_cluster("cluster-1").unwrap();
    assert!(matches!(dirs.bind_cluster("cluster-2"), Err(DataDirError::OtherCluster { .. })));
}

#[test]
fn a_power_cut_is_remembered_until_it_is_dealt_with() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a")];
    let lost = |dirs: &DataDirs| dirs.get("a").unwrap().lost_power_unsynced();
    let dirs = open(&specs).unwrap();
    assert!(!lost(&dirs), "nothing was ever acknowledged here");
    dirs.note_unsynced();
    dirs.note_boot(true);
    drop(dirs);
    assert!(!lost(&open(&specs).unwrap()), "the process ended, the machine did not");

    let other_boot = |dir: &Path| {
        let mut marker = Marker::load(dir).unwrap().unwrap();
        marker.boot_id = Some("another".to_owned());
        marker.save(dir).unwrap();
    };
    other_boot(&specs[0].path);
    // Whatever durability the next start has, and however often it ends before it has looked at everything.
    for _ in 0..2 {
        assert!(lost(&open(&specs).unwrap()));
    }
    let dirs = open(&specs).unwrap();
    dirs.note_boot(false);
    drop(dirs);
    other_boot(&specs[0].path);
    assert!(!lost(&open(&specs).unwrap()), "synced before it was acknowledged");
}

#[test]
fn mix_ups_stop_the_start() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a"), spec(root.path(), "b")];
    let dirs = open(&specs).unwrap();
    assert!(matches!(open(&specs), Err(DataDirError::Locked { .. })));
    drop(dirs);
    let other = Node::new("127.0.0.1:1");
    assert!(matches!(DataDirs::open(&specs, &other, 0), Err(DataDirError::OtherNode { .. })));
    fs::copy(specs[0].path.join(".pegasus-disk"), specs[1].path.join(".pegasus-disk")).unwrap();
    assert!(matches!(open(&specs), Err(DataDirError::Twice { .. })));
}

#[test]
fn a_missing_marker_is_a_broken_disk() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a"), spec(root.path(), "b")];
    open(&specs).unwrap();
    // Not mounted: the mount point is there, and empty.
    fs::remove_dir_all(&specs[1].path).unwrap();
    fs::create_dir(&specs[1].path).unwrap();
    for _ in 0..2 {
        let dirs = open(&specs).unwrap();
        assert!(
            matches!(dirs.get("b").unwrap().state(), DiskState::Broken(why) if why.contains("not mounted"))
        );
        assert_eq!(dirs.usable().map(DataDir::tag).collect::<Vec<_>>(), ["a"]);
        assert_eq!(dirs.place().map(DataDir::tag), Some("a"));
    }
    // Replicas without a marker: somebody removed it.
    open(&specs[..1]).unwrap().get("a").unwrap().create_replica(&sample(Gpid::new(1, 0))).unwrap();
    fs::remove_file(specs[0].path.join(".pegasus-disk")).unwrap();
    assert!(
        matches!(open(&specs[..1]), Err(DataDirError::NoneUsable(why)) if why.contains(specs[0].path.to_str().unwrap()))
    );
    // A damaged marker is not replaced.
    let fresh = spec(root.path(), "c");
    open(std::slice::from_ref(&fresh)).unwrap();
    fs::write(fresh.path.join(".pegasus-disk"), "x").unwrap();
    assert!(matches!(open(&[fresh]), Err(DataDirError::NoneUsable(_))));
}

#[test]
fn a_first_start_may_be_interrupted() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a"), spec(root.path(), "b")];
    // Only the first one has its marker yet.
    fs::create_dir(&specs[0].path).unwrap();
    Marker::new(node(), None).save(&specs[0].path).unwrap();
    let dirs = open(&specs).unwrap();
    assert_eq!(dirs.usable().count(), 2);
}

#[test]
fn a_new_disk_joins_the_others() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a"), spec(root.path(), "b")];
    let dirs = open(&specs[..1]).unwrap();
    dirs.bind_cluster("c").unwrap();
    drop(dirs);
    let dirs = open(&specs).unwrap();
    assert_eq!(dirs.get("b").unwrap().state(), DiskState::Normal);
    drop(dirs);
    assert_eq!(open(&specs[1..]).unwrap().cluster_id().as_deref(), Some("c"));
}

#[test]
fn space_is_watched_and_broken_is_final() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a")];
    let dirs = DataDirs::open(&specs, &node(), 101).unwrap();
    let dir = dirs.get("a").unwrap();
    assert_eq!(dir.state(), DiskState::SpaceInsufficient);
    assert!(dir.space().total_bytes > 0 && dir.space().available_percent() <= 100);
    assert!(dirs.place().is_none());
    dir.mark_broken("fsync failed");
    dir.mark_broken("again");
    assert_eq!(dir.refresh(), DiskState::Broken("fsync failed".into()));
}

#[test]
fn replicas_are_made_found_and_set_aside() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a"), spec(root.path(), "b")];
    let dirs = open(&specs).unwrap();
    let (a, b) = (dirs.get("a").unwrap(), dirs.get("b").unwrap());
    let gpids = [Gpid::new(1, 0), Gpid::new(1, 1), Gpid::new(2, 0)];
    for gpid in gpids {
        let path = a.create_replica(&sample(gpid)).unwrap();
        assert!(path.ends_with(format!("replica/reps/{gpid}.pegasus")));
        assert!(a.create_replica(&sample(gpid)).is_err(), "there is one");
    }
    assert_eq!(dirs.place().map(DataDir::tag), Some("b"), "fewest replicas");
    fs::create_dir(b.replica_dir(gpids[0])).unwrap();
    assert!(matches!(b.replicas().unwrap()[..], [FoundReplica { meta: Ok(None), .. }]));

    a.discard(gpids[1]).unwrap();
    a.quarantine(gpids[2]).unwrap();
    assert!(a.discard(gpids[1]).is_err(), "gone already");
    fs::create_dir(a.replica_dir(gpids[1]).with_extension("pegasus.tmp")).unwrap();
    let found = a.replicas().unwrap();
    assert_eq!(found.iter().map(|r| r.gpid).collect::<Vec<_>>(), [gpids[0]]);
    assert_eq!(found[0].meta.as_ref().unwrap().as_ref().unwrap().config.gpid, gpids[0]);

    let day = Duration::from_secs(86_400);
    assert_eq!(a.remove_set_aside(day, day).unwrap(), 0);
    assert_eq!(a.remove_set_aside(Duration::ZERO, day).unwrap(), 1);
    assert_eq!(a.remove_set_aside(Duration::ZERO, Duration::ZERO).unwrap(), 1);
    drop(dirs);
    let dirs = open(&specs).unwrap();
    let left = fs::read_dir(dirs.get("a").unwrap().path().join("replica/reps")).unwrap().count();
    assert_eq!(left, 1, "the unfinished one was cleared away");
}

#[test]
fn a_replica_of_a_later_release_stops_the_start_and_stays() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a"), spec(root.path(), "b")];
    let dirs = open(&specs).unwrap();
    let b = dirs.get("b").unwrap();
    b.create_replica(&sample(Gpid::new(1, 0))).unwrap();
    let replica = b.create_replica(&sample(Gpid::new(1, 1))).unwrap();
    let unfinished = b.replica_dir(Gpid::new(1, 2)).with_extension("pegasus.tmp");
    fs::create_dir(&unfinished).unwrap();
    drop(dirs);

    let file = replica.join(".replica-meta");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("-meta 1 ", "-meta 2 ", 1)).unwrap();
    let refused = open(&specs).unwrap_err();
    let told = format!("{} has format version 2; this program knows up to 1", file.display());
    assert!(
        matches!(refused, DataDirError::File(SmallFileError::TooNew { .. })) && refused.to_string() == told,
        "{refused}"
    );
    assert!(replica.exists() && unfinished.exists());

    fs::write(&file, text).unwrap();
    assert_eq!(open(&specs).unwrap().get("b").unwrap().replica_count().unwrap(), 2);
}

#[test]
fn a_directory_remembers_its_log_and_saves_nothing_without_need() {
    let root = tempfile::tempdir().unwrap();
    let specs = [spec(root.path(), "a"), spec(root.path(), "b")];
    let dirs = open(&specs).unwrap();
    let a = dirs.get("a").unwrap();
    assert_eq!((a.log_id(), a.has_replicas()), (None, false));
    a.note_log(7);
    drop(dirs);
    // As on a full disk: nothing can be written beside the marker.
    fs::create_dir(specs[0].path.join(".pegasus-disk.tmp")).unwrap();
    let dirs = open(&specs).unwrap();
    let logs: Vec<_> = dirs.iter().map(|dir| (dir.state(), dir.log_id())).collect();
    assert_eq!(logs, [(DiskState::Normal, Some(7)), (DiskState::Normal, None)]);
    dirs.get("a").unwrap().note_log(8);
    assert!(matches!(dirs.get("a").unwrap().state(), DiskState::Broken(_)));
}
