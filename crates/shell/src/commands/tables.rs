//! Commands on tables as a whole.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use pegasus_client::{CreateTable, Error};
use pegasus_types::{AppId, AppInfo, AppStatus, Node, PartitionConfig};
use serde_json::Value;

use super::{Answer, Failure, Result};
use crate::args::{Args, Usage, text};
use crate::output::Output;
use crate::session::Session;

/// How long `create` waits for the table to become healthy, and `wait_healthy` if it is not told.
const HEALTHY_WITHIN: Duration = Duration::from_secs(60);

/// What `/meta/apps?detail` tells of a table, and `ls -d` shows.
const HEALTH: [&str; 7] = [
    "app_id",
    "app_name",
    "partition_count",
    "fully_healthy",
    "unhealthy",
    "write_unhealthy",
    "read_unhealthy",
];
/// What `/meta/app` tells of the partitions of a table, and `app -d` shows.
const HEALTH_OF_ONE: [&str; 4] = [
    "fully_healthy_partition_count",
    "unhealthy_partition_count",
    "write_unhealthy_partition_count",
    "read_unhealthy_partition_count",
];

const STATUSES: [(AppStatus, &str); 8] = [
    (AppStatus::Invalid, "INVALID"),
    (AppStatus::Available, "AVAILABLE"),
    (AppStatus::Creating, "CREATING"),
    (AppStatus::CreateFailed, "CREATE_FAILED"),
    (AppStatus::Dropping, "DROPPING"),
    (AppStatus::DropFailed, "DROP_FAILED"),
    (AppStatus::Dropped, "DROPPED"),
    (AppStatus::Recalling, "RECALLING"),
];

pub async fn ls(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    args.end()?;
    let status = match args.flag('s') {
        None => (!args.has('a')).then_some(AppStatus::Available),
        Some(b"all") => None,
        Some(name) => {
            let name = text(name.to_vec(), "status")?;
            let known = STATUSES.iter().find(|(_, text)| text.eq_ignore_ascii_case(&name));
            Some(known.ok_or_else(|| Usage(format!("-s: {name:?} is no status of a table")))?.0)
        }
    };
    let mut tables = session.cluster.tables(status).await?;
    tables.sort_by_key(|table| table.app_id);
    let health = match args.has('d') {
        true => Some(page(session, "/meta/apps?detail", "healthy_info").await?),
        false => None,
    };
    let columns = [
        "app_id",
        "status",
        "app_name",
        "app_type",
        "partition_count",
        "replica_count",
        "is_stateful",
        "create_time",
        "drop_time",
        "drop_expire",
        "envs_count",
    ];
    out.table("general_info", &columns, &tables.iter().map(general).collect::<Vec<_>>())?;
    let mut summary = vec![("total_app_count", tables.len().to_string())];
    if let Some(health) = health {
        // A table that has come or gone since the list was made is not in both.
        let ids = tables.iter().map(|table| table.app_id.to_string());
        let rows = ids.filter_map(|id| health.get(&id)).map(|health| told(health, HEALTH));
        let rows = rows.collect::<std::result::Result<Vec<_>, _>>()?;
        out.table("healthy_info", &HEALTH, &rows)?;
        let [.., ill, unwritable, unreadable] = std::array::from_fn::<_, { HEALTH.len() }, _>(|column| {
            rows.iter().filter(move |row| row[column] != "0").count()
        });
        summary.extend([
            ("fully_healthy_app_count", (rows.len() - ill).to_string()),
            ("unhealthy_app_count", ill.to_string()),
            ("write_unhealthy_app_count", unwritable.to_string()),
            ("read_unhealthy_app_count", unreadable.to_string()),
        ]);
    }
    out.fields("summary", &summary)?;
    Ok(Answer::Yes)
}

fn general(table: &AppInfo) -> Vec<String> {
    let status = STATUSES.iter().find(|(status, _)| *status == table.status).map_or("?", |(_, name)| name);
    vec![
        table.app_id.to_string(),
        status.to_owned(),
        table.name.clone(),
        table.app_type.clone(),
        table.partition_count.to_string(),
        table.max_replica_count.to_string(),
        "true".to_owned(),
        time(table.create_second),
        time(table.drop_second),
        time(table.expire_second),
        table.envs.len().to_string(),
    ]
}

/// UTC, `-` for none.
fn time(unix_second: i64) -> String {
    match u64::try_from(unix_second) {
        Err(_) | Ok(0) => "-".to_owned(),
        Ok(second) => {
            let time = UNIX_EPOCH + Duration::from_secs(second);
            humantime::format_rfc3339_seconds(time).to_string().replace('T', "_").replace('Z', "")
        }
    }
}

/// What `part` of a page of the leader holds. How well partitions are is its word alone: it knows who is alive, and how
/// many members a write needs.
async fn page(session: &Session, path: &str, part: &str) -> std::result::Result<Value, Failure> {
    let page = session.cluster.leader_http(path).await?;
    let mut page: Value = serde_json::from_str(&page).unwrap_or_default();
    let nonsense = || Error::Nonsense(format!("{path} without {part:?}"));
    Ok(page.get_mut(part).map(Value::take).ok_or_else(nonsense)?)
}

/// The texts of an object that have these names.
fn told<const N: usize>(object: &Value, names: [&str; N]) -> std::result::Result<Vec<String>, Error> {
    let text = |name: &str| {
        let text = object.get(name).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| Error::Nonsense(format!("no {name:?} in {object}")))
    };
    names.into_iter().map(text).collect()
}

pub async fn app(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let name = args.text("table")?;
    args.end()?;
    let partitions = session.cluster.partitions(&name).await?;
    let health = match args.has('d') {
        true => Some(page(session, &format!("/meta/app?name={name}"), "healthy").await?),
        false => None,
    };
    let first =
        partitions.first().ok_or_else(|| Error::Nonsense(format!("table {name:?} has no partitions")))?;
    out.fields(
        "general",
        &[
            ("app_name", name.clone()),
            ("app_id", first.gpid.app_id.to_string()),
            ("partition_count", partitions.len().to_string()),
            ("max_replica_count", first.max_replica_count.to_string()),
        ],
    )?;
    let Some(health) = health else { return Ok(Answer::Yes) };
    let replicas: Vec<_> = partitions.iter().map(replica_line).collect();
    out.table("replicas", &["pidx", "ballot", "replica_count", "primary", "secondaries"], &replicas)?;
    let mut nodes = BTreeMap::new();
    count_roles(&partitions, &mut nodes);
    let mut rows: Vec<_> = nodes.iter().map(|(node, roles)| roles.row(node.as_str())).collect();
    rows.push(nodes.values().fold(Roles::default(), |sum, roles| sum.plus(roles)).row(""));
    out.table("nodes", &["node", "primary", "secondary", "total"], &rows)?;
    let healthy: Vec<_> = HEALTH_OF_ONE.into_iter().zip(told(&health, HEALTH_OF_ONE)?).collect();
    out.fields("healthy", &healthy)?;
    let work = in_work(session, first.gpid.app_id).await;
    if !work.is_empty() {
        out.table("in_work", &["pidx", "note"], &work)?;
    }
    Ok(Answer::Yes)
}

/// What the leader does or waits for, by partition of a table. Empty, too, when it does not say.
async fn in_work(session: &Session, app_id: AppId) -> Vec<Vec<String>> {
    let told = session.cluster.leader_command("meta.work", &[]).await.unwrap_or_default();
    let work: Vec<Value> = serde_json::from_str(&told).unwrap_or_default();
    let row = |work: &Value| {
        let text = |key: &str| work.get(key).and_then(Value::as_str);
        let (id, pidx) = text("gpid")?.split_once('.')?;
        (id == app_id.to_string()).then_some(vec![pidx.to_owned(), text("note")?.to_owned()])
    };
    work.iter().filter_map(row).collect()
}

fn replica_line(partition: &PartitionConfig) -> Vec<String> {
    let secondaries: Vec<_> = partition.secondaries.iter().map(Node::as_str).collect();
    vec![
        partition.gpid.index.to_string(),
        partition.ballot.to_string(),
        format!("{}/{}", partition.member_count(), partition.max_replica_count),
        partition.primary.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        format!("[{}]", secondaries.join(",")),
    ]
}

/// What a node holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    pub primary: usize,
    pub secondary: usize,
}

impl Roles {
    fn plus(self, other: &Self) -> Self {
        Self { primary: self.primary + other.primary, secondary: self.secondary + other.secondary }
    }

    fn row(&self, node: &str) -> Vec<String> {
        vec![
            node.to_owned(),
            self.primary.to_string(),
            self.secondary.to_string(),
            (self.primary + self.secondary).to_string(),
        ]
    }
}

pub fn count_roles(partitions: &[PartitionConfig], nodes: &mut BTreeMap<Node, Roles>) {
    for partition in partitions {
        if let Some(primary) = &partition.primary {
            nodes.entry(primary.clone()).or_default().primary += 1;
        }
        for secondary in &partition.secondaries {
            nodes.entry(secondary.clone()).or_default().secondary += 1;
        }
    }
}

pub async fn create(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let name = args.text("table")?;
    args.end()?;
    let default = CreateTable::default();
    let table = CreateTable {
        partitions: args.flag_as('p')?.unwrap_or(default.partitions),
        replicas: args.flag_as('r')?.unwrap_or(default.replicas),
        envs: envs(args.flag('e').unwrap_or_default())?,
        if_missing: !args.has('f'),
    };
    let id = session.cluster.create_table(&name, &table).await?;
    out.fact("app_id", id, format_args!("table {name:?} has id {id}"))?;
    if args.has('n') {
        return Ok(Answer::Yes);
    }
    session.cluster.wait_healthy(&name, HEALTHY_WITHIN).await?;
    out.fact("healthy", true, "all its partitions have all replicas")?;
    Ok(Answer::Yes)
}

/// `key=value,key=value`
fn envs(list: &[u8]) -> std::result::Result<BTreeMap<String, String>, Usage> {
    let list = text(list.to_vec(), "envs")?;
    list.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Usage(format!("-e: {pair:?} is not key=value"))),
        })
        .collect()
}

pub async fn drop_table(session: &mut Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let name = args.text("table")?;
    args.end()?;
    let reserve = args.flag_as('r')?.map(Duration::from_secs);
    session.cluster.drop_table(&name, !args.has('f'), reserve).await?;
    session.forget(&name);
    let kept = match reserve {
        Some(time) => format!("for {} s", time.as_secs()),
        None => "for the time that the servers are configured to".to_owned(),
    };
    out.fact(
        "error",
        "OK",
        format_args!("table {name:?} is dropped; its data is kept {kept}, `recall` brings it back"),
    )?;
    Ok(Answer::Yes)
}

pub async fn recall(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let id = args
        .optional_as("app_id")?
        .ok_or_else(|| Usage("<app_id> is missing; `ls -a` shows it".to_owned()))?;
    let new_name = args.optional().map(|name| text(name, "new_name")).transpose()?.unwrap_or_default();
    args.end()?;
    let table = session.cluster.recall_table(id, &new_name).await?;
    out.fact("app_name", table.name.as_str(), format_args!("table {id} is back as {:?}", table.name))?;
    session.cluster.wait_healthy(&table.name, HEALTHY_WITHIN).await?;
    out.fact("healthy", true, "all its partitions have all replicas")?;
    Ok(Answer::Yes)
}

/// The table whose settings are meant: the first word, or if that is `left_out` the one in use.
fn table_of(session: &Session, args: &mut Args, left_out: bool) -> std::result::Result<String, Usage> {
    match session.table_in_use().filter(|_| left_out) {
        Some(name) => Ok(name.to_owned()),
        None => args.text("table"),
    }
}

pub async fn set_app_envs(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let is_pairs = args.left().is_multiple_of(2);
    let name = table_of(session, &mut args, is_pairs)?;
    let mut envs = BTreeMap::new();
    while let Some(key) = args.optional() {
        envs.insert(text(key, "key")?, args.text("value")?);
    }
    if envs.is_empty() {
        return Err(Usage("<key> <value> are missing".to_owned()).into());
    }
    let hint = session.cluster.set_envs(&name, &envs).await?;
    envs_changed(hint, out)
}

pub async fn get_app_envs(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let is_alone = args.left() == 0;
    let name = table_of(session, &mut args, is_alone)?;
    args.end()?;
    let tables = session.cluster.tables(Some(AppStatus::Available)).await?;
    let table = tables.iter().find(|table| table.name == name).ok_or_else(|| Error::NoTable(name.clone()))?;
    let envs: Vec<(&str, String)> = table.envs.iter().map(|(key, v)| (key.as_str(), v.clone())).collect();
    out.fields("app_envs", &envs)?;
    Ok(Answer::Yes)
}

pub async fn del_app_envs(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    // A key or a table: nothing tells one from the other, so it is as in Apache Pegasus.
    let name = table_of(session, &mut args, true)?;
    let keys: Vec<String> =
        args.rest().into_iter().map(|key| text(key, "key")).collect::<std::result::Result<_, _>>()?;
    if keys.is_empty() {
        return Err(Usage("<key> is missing".to_owned()).into());
    }
    let hint = session.cluster.delete_envs(&name, keys).await?;
    envs_changed(hint, out)
}

pub async fn clear_app_envs(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let is_alone = args.left() == 0;
    let name = table_of(session, &mut args, is_alone)?;
    args.end()?;
    let prefix = match (args.has('a'), args.flag('p')) {
        (true, None) => String::new(),
        (false, Some(prefix)) if !prefix.is_empty() => text(prefix.to_vec(), "prefix")?,
        _ => return Err(Usage("either -a (all) or -p <prefix>".to_owned()).into()),
    };
    let hint = session.cluster.clear_envs(&name, &prefix).await?;
    envs_changed(hint, out)
}

fn envs_changed(hint: String, out: &mut Output<'_>) -> Result {
    let said = if hint.is_empty() { "OK" } else { &hint };
    out.fact("error", "OK", said)?;
    if !hint.is_empty() && out.is_json() {
        out.fact("hint", hint.as_str(), &hint)?;
    }
    Ok(Answer::Yes)
}

pub async fn wait_healthy(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let name = args.text("table")?;
    let within = args.optional_as("seconds")?.map_or(HEALTHY_WITHIN, Duration::from_secs);
    args.end()?;
    session.cluster.wait_healthy(&name, within).await?;
    out.fact("healthy", true, format_args!("table {name:?}: all partitions have all replicas"))?;
    Ok(Answer::Yes)
}

#[cfg(test)]
mod tests {
    use pegasus_types::{Ballot, Gpid};

    use super::*;

    fn partition(primary: bool, secondaries: usize) -> PartitionConfig {
        PartitionConfig {
            ballot: Ballot(3),
            primary: primary.then(|| Node::new("a:1")),
            secondaries: (0..secondaries).map(|i| Node::new(format!("s{i}:1"))).collect(),
            ..PartitionConfig::unassigned(Gpid::new(2, 7), 3)
        }
    }

    #[test]
    fn a_line_per_partition() {
        assert_eq!(replica_line(&partition(true, 2)), ["7", "3", "3/3", "a:1", "[s0:1,s1:1]"]);
        assert_eq!(replica_line(&partition(false, 2))[3], "-");
    }

    #[test]
    fn small_formats() {
        assert_eq!((time(0), time(-1)), ("-".to_owned(), "-".to_owned()));
        assert_eq!(time(1_700_000_000), "2023-11-14_22:13:20");
        assert_eq!(
            envs(b"a=1,b=x=y").unwrap(),
            BTreeMap::from([("a".into(), "1".into()), ("b".into(), "x=y".into())])
        );
        assert!(envs(b"a").is_err() && envs(b"=1").is_err() && envs(b"").unwrap().is_empty());
    }
}
