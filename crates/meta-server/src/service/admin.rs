//! What the cluster shows to operators, once for RPC and HTTP: functions over [`Published`].

use pegasus_placement::cure::Counts;
use pegasus_placement::view::Table;
use pegasus_types::{ErrorCode, Node};

use crate::published::Published;

/// How a table's name is compared with a pattern (`pattern_match_type`).
fn name_matches(name: &str, pattern: &str, kind: i32) -> Result<bool, ErrorCode> {
    Ok(match kind {
        1 => true,
        2 => name == pattern,
        3 => name.contains(pattern),
        4 => name.starts_with(pattern),
        5 => name.ends_with(pattern),
        _ => return Err(ErrorCode::InvalidParameters),
    })
}

/// Tables with this status (0 = any) whose name fits the pattern, if there is one.
pub fn list_apps<'a>(
    published: &'a Published,
    status: i32,
    pattern: Option<(&str, i32)>,
) -> Result<Vec<&'a Table>, ErrorCode> {
    let mut found = Vec::new();
    for table in published.view.tables() {
        let named = pattern.map_or(Ok(true), |(text, kind)| name_matches(&table.info.name, text, kind))?;
        if named && (status == 0 || status == table.info.status as i32) {
            found.push(&**table);
        }
    }
    Ok(found)
}

/// Nodes, alive or not; `status` 0 = all, 1 = alive, 2 = not alive.
pub fn list_nodes(published: &Published, status: i32) -> Vec<(&Node, bool)> {
    let nodes = published.nodes.iter().map(|(node, state)| (node, state.alive));
    nodes.filter(|(_, alive)| status == 0 || (status == 1) == *alive).collect()
}

/// Keys and values in the order that tools show (admin-protocol.md 4.3).
pub fn cluster_info(published: &Published) -> Vec<(&'static str, String)> {
    let about = &published.about;
    let loads = published.loads();
    let alive: Vec<_> = list_nodes(published, 1).into_iter().map(|(node, _)| loads.get(node)).collect();
    let spread = |f: fn(&pegasus_placement::view::Load) -> u32| {
        format!("{:.2}", deviation(&alive.iter().map(|load| f64::from(f(load))).collect::<Vec<_>>()))
    };
    let metas: Vec<&str> = about.metas.iter().map(Node::as_str).collect();
    vec![
        ("meta_servers", metas.join(",")),
        ("primary_meta_server", about.me.to_string()),
        // As the configuration has them; of another store its name.
        ("zookeeper_hosts", about.store.strip_prefix("zookeeper:").unwrap_or(&about.store).to_owned()),
        ("zookeeper_root", if about.root.is_empty() { "/".into() } else { about.root.clone() }),
        ("meta_function_level", published.level.to_string()),
        ("balance_operation_count", operation_count(&published.wanted_moves)),
        ("primary_replica_count_stddev", spread(|load| load.primaries)),
        ("total_replica_count_stddev", spread(|load| load.copies)),
        ("cluster_name", about.cluster_name.clone()),
    ]
}

/// Tools parse this text.
fn operation_count(wanted: &Counts) -> String {
    serde_json::json!({
        "copy_pri": wanted.copy_primary.to_string(),
        "copy_sec": wanted.copy_secondary.to_string(),
        "move_pri": wanted.move_primary.to_string(),
        "total": wanted.total().to_string(),
    })
    .to_string()
}

/// Standard deviation of a whole population; 0 when it is empty.
fn deviation(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, kind, want) in [
            ("x", 1, Ok(true)),
            ("temp", 2, Ok(true)),
            ("tem", 2, Ok(false)),
            ("em", 3, Ok(true)),
            ("te", 4, Ok(true)),
            ("mp", 4, Ok(false)),
            ("mp", 5, Ok(true)),
            (".*", 6, Err(ErrorCode::InvalidParameters)),
        ] {
            assert_eq!(name_matches("temp", pattern, kind), want, "{pattern} {kind}");
        }
    }

    #[test]
    fn the_count_of_moves_is_the_text_that_tools_parse() {
        let wanted = Counts { move_primary: 2, copy_primary: 0, copy_secondary: 5 };
        let want = r#"{"copy_pri":"0","copy_sec":"5","move_pri":"2","total":"7"}"#;
        assert_eq!(operation_count(&wanted), want);
    }

    #[test]
    fn deviations() {
        assert_eq!(deviation(&[]), 0.0);
        assert_eq!(deviation(&[3.0, 3.0]), 0.0);
        assert_eq!(deviation(&[2.0, 4.0]), 1.0);
    }
}
