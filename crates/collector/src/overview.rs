//! What the meta leader and the replica-servers know of the cluster, asked again and again.

use std::time::{Duration, Instant};

use pegasus_rpc::peer::PeerPool;
use pegasus_telemetry::Health;
use pegasus_types::Node;
use pegasus_types::cluster::ClusterOverview;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::hotspot::Hotspots;
use crate::metrics::Metrics;
use crate::report::Report;
use crate::scrape;

/// One meta-server must answer within this time; the next one is asked then.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// What is older than this is not shown any more: better nothing than yesterday's health.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// Part of [`Health`].
const PART: &str = "meta leader";

/// What a look needs.
#[derive(Debug)]
pub struct Look {
    pub pool: PeerPool,
    pub metas: Vec<Node>,
    pub every: Duration,
    pub metrics: Metrics,
    pub health: Health,
    /// Labels of the text, as in the registry.
    pub labels: Vec<(&'static str, String)>,
    /// What the replica-servers said last, as Prometheus text.
    pub text: watch::Sender<String>,
    pub hotspots: Hotspots,
}

/// Asks for ever and keeps the metrics at what the leader and the nodes say.
pub async fn run(look: Look) {
    let Look { pool, metas, every, metrics, health, labels, text, hotspots } = look;
    health.not_ready(PART, "not asked yet");
    let mut rounds = interval(every);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leader: Option<Node> = None;
    let mut last: Option<(Instant, ClusterOverview)> = None;
    let mut reachable = true;
    let mut report = Report::new(hotspots);
    let mut asked: Option<Instant> = None;
    metrics.age(None);
    loop {
        rounds.tick().await;
        match ask(&pool, &metas, leader.as_ref()).await {
            Ok((node, overview)) => {
                if !reachable || leader.as_ref() != Some(&node) {
                    tracing::info!(leader = %node, tables = overview.tables.len(), nodes = overview.nodes.len(), "meta leader found");
                }
                metrics.overview(&overview);
                health.ready(PART);
                (leader, last, reachable) = (Some(node), Some((Instant::now(), overview)), true);
            }
            Err(why) => {
                if reachable {
                    tracing::warn!("no meta leader answers: {why}");
                }
                health.not_ready(PART, why);
                reachable = false;
                if last.as_ref().is_some_and(|(at, _)| at.elapsed() > STALE_AFTER) {
                    metrics.forget_overview();
                    text.send_replace(String::new());
                    last = None;
                }
            }
        }
        // Nodes tell their numbers also while no meta-server does.
        if let Some((_, overview)) = &last {
            let nodes: Vec<_> = overview.nodes.iter().map(|node| node.node.clone()).collect();
            let answers = scrape::all(&pool, &nodes).await;
            let now = Instant::now();
            report.take(&answers, overview, asked.map_or(Duration::ZERO, |before| now - before));
            asked = Some(now);
            text.send_replace(report.render(&answers, overview, labels.clone()));
        }
        metrics.leader(reachable);
        metrics.age(last.as_ref().map(|(at, _)| at.elapsed()));
    }
}

/// The last leader first, then all metas; one that names another leader is believed once.
async fn ask(
    pool: &PeerPool,
    metas: &[Node],
    leader: Option<&Node>,
) -> Result<(Node, ClusterOverview), String> {
    let mut why = Vec::new();
    for node in leader.into_iter().chain(metas.iter().filter(|node| Some(*node) != leader)) {
        match pool.meta(node).cluster_view(ANSWER_WITHIN).await {
            Ok(overview) => match &overview.leader {
                Some(named) if named == node => return Ok((node.clone(), overview)),
                Some(named) => match pool.meta(named).cluster_view(ANSWER_WITHIN).await {
                    Ok(overview) if overview.leader.as_ref() == Some(named) => {
                        return Ok((named.clone(), overview));
                    }
                    Ok(_) => why.push(format!("{node} names {named}, which does not lead")),
                    Err(error) => why.push(format!("{node} names {named}: {error}")),
                },
                None => why.push(format!("{node} knows no leader")),
            },
            Err(error) => why.push(format!("{node}: {error}")),
        }
    }
    Err(why.join("; "))
}
