//! A real cluster through the library. Needs `pegasus_server` beside this test's directory (`make test` builds it).

use std::time::Duration;

use pegasus_onebox::{Cluster, Options, State};

#[test]
fn members_end_and_come_back() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { partitions: 2, ..Options::default() })?;
    cluster.wait_healthy(Duration::from_secs(60))?;
    for member in cluster.members() {
        assert_eq!(cluster.status(&member.name)?.state, State::Running);
        assert_eq!(cluster.member_at(&member.address.to_string()), Some(member));
    }
    assert!(cluster.start_all()?.is_empty(), "all run already");

    let pid = cluster.pid("replica2")?;
    cluster.kill("replica2")?;
    assert_eq!(cluster.status("replica2")?.state, State::Stopped);
    assert!(cluster.start_member("replica2")? && !cluster.start_member("replica2")?);
    assert_ne!(cluster.pid("replica2")?, pid);
    cluster.pause("replica3")?;
    assert_eq!(cluster.status("replica3")?.state, State::Paused);
    cluster.resume("replica3")?;
    cluster.wait_healthy(Duration::from_secs(60))?;

    cluster.kill_all()?;
    assert!(cluster.pid("meta1").is_err());
    cluster.start_all()?;
    cluster.wait_healthy(Duration::from_secs(60))?;
    cluster.stop_all()?;
    assert!(
        cluster.members().iter().all(|m| cluster.status(&m.name).is_ok_and(|s| s.state == State::Stopped))
    );
    Ok(())
}
