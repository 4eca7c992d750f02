//! Commands on single values, and those that take several at once without printing rows.

use pegasus_client::{Change, Check, CheckType, Checked, Error, IncrTtl, Table, TimeLeft, Ttl};
use pegasus_types::hash::key_hash;
use serde_json::Value as Json;

use super::{Answer, Result};
use crate::args::{Args, Usage, seconds, text};
use crate::output::Output;
use crate::session::Session;

pub async fn set(table: &Table, mut args: Args, out: &mut Output<'_>) -> Result {
    let (hash_key, sort_key, value) = (args.word("hash_key")?, args.word("sort_key")?, args.word("value")?);
    let ttl = ttl_of(args.optional_as("ttl_seconds")?)?;
    args.end()?;
    table.set_with_ttl(hash_key, sort_key, value, ttl).await?;
    done(out)
}

pub async fn get(session: &Session, table: &Table, args: Args, out: &mut Output<'_>) -> Result {
    let (hash_key, sort_key) = key(args)?;
    match table.get(hash_key, sort_key).await? {
        Some(value) => {
            let value = session.show(&value);
            out.fact("value", value.as_str(), format_args!("\"{value}\""))?;
            Ok(Answer::Yes)
        }
        None => not_found(out, "value"),
    }
}

pub async fn del(table: &Table, args: Args, out: &mut Output<'_>) -> Result {
    let (hash_key, sort_key) = key(args)?;
    table.del(hash_key, sort_key).await?;
    done(out)
}

pub async fn exist(table: &Table, args: Args, out: &mut Output<'_>) -> Result {
    let (hash_key, sort_key) = key(args)?;
    let exists = table.exist(hash_key, sort_key).await?;
    out.fact("exist", exists, exists)?;
    Ok(yes(exists))
}

pub async fn ttl(table: &Table, args: Args, out: &mut Output<'_>) -> Result {
    let (hash_key, sort_key) = key(args)?;
    match table.ttl(hash_key, sort_key).await? {
        TimeLeft::Missing => return not_found(out, "ttl_seconds"),
        TimeLeft::Forever => out.fact("ttl_seconds", -1, "no ttl")?,
        TimeLeft::Seconds(seconds) => out.fact("ttl_seconds", seconds, format_args!("{seconds} seconds"))?,
    }
    Ok(Answer::Yes)
}

pub async fn incr(table: &Table, mut args: Args, out: &mut Output<'_>) -> Result {
    let (hash_key, sort_key) = (args.word("hash_key")?, args.word("sort_key")?);
    let increment = args.optional_as("increment")?.unwrap_or(1);
    let ttl = match args.flag_as('t')? {
        None => IncrTtl::Keep,
        Some(value) => IncrTtl::Set(seconds(value, "-t")?),
    };
    args.end()?;
    let value = table.incr(hash_key, sort_key, increment, ttl).await?;
    out.fact("new_value", value, value)?;
    Ok(Answer::Yes)
}

pub async fn mset(table: &Table, mut args: Args, out: &mut Output<'_>) -> Result {
    let hash_key = args.word("hash_key")?;
    let ttl = ttl_of(args.flag_as('t')?)?;
    let words = args.rest();
    if words.is_empty() || words.len() % 2 == 1 {
        return Err(Usage("sort keys and values come in pairs".to_owned()).into());
    }
    let count = words.len() / 2;
    table.multi_set(hash_key, words.chunks(2).map(|pair| (&pair[0], pair[1].clone())), ttl).await?;
    out.fact("count", count, format_args!("OK, {count} values"))?;
    Ok(Answer::Yes)
}

pub async fn multi_del(table: &Table, mut args: Args, out: &mut Output<'_>) -> Result {
    let hash_key = args.word("hash_key")?;
    let count = table.multi_del(hash_key, args.rest()).await?;
    out.fact("count", count, format_args!("OK, {count} sort keys"))?;
    Ok(Answer::Yes)
}

pub async fn sortkey_count(table: &Table, mut args: Args, out: &mut Output<'_>) -> Result {
    let hash_key = args.word("hash_key")?;
    args.end()?;
    match table.sort_key_count(hash_key).await? {
        Some(count) => out.fact("count", count, count)?,
        None => out.fact("count", Json::Null, "too many to count at once")?,
    }
    Ok(Answer::Yes)
}

pub async fn cas(session: &Session, table: &Table, mut args: Args, out: &mut Output<'_>) -> Result {
    let hash_key = args.word("hash_key")?;
    let check = check(&args)?;
    let sort_key = args.flag('s').unwrap_or(&check.sort_key).to_vec();
    let value = args.flag('v').ok_or_else(|| Usage("-v value is missing".to_owned()))?.to_vec();
    let ttl = ttl_of(args.flag_as('l')?)?;
    args.end()?;
    let outcome = table.check_and_set(hash_key, &check, (sort_key, value), ttl, args.has('r')).await?;
    checked(session, &outcome, args.has('r'), out)
}

pub async fn check_and_mutate(
    session: &Session,
    table: &Table,
    mut args: Args,
    out: &mut Output<'_>,
) -> Result {
    let hash_key = args.word("hash_key")?;
    let check = check(&args)?;
    let mut changes = Vec::new();
    while let Some(word) = args.optional() {
        changes.push(match &word[..] {
            b"set" => Change::set(args.word("sort_key")?, args.word("value")?),
            b"del" => Change::del(args.word("sort_key")?),
            other => {
                let other = String::from_utf8_lossy(other).into_owned();
                return Err(Usage(format!(
                    "{other:?}: a change is set <sort_key> <value> or del <sort_key>"
                ))
                .into());
            }
        });
    }
    if changes.is_empty() {
        return Err(Usage("no change: set <sort_key> <value> or del <sort_key>".to_owned()).into());
    }
    let outcome = table.check_and_mutate(hash_key, &check, &changes, args.has('r')).await?;
    checked(session, &outcome, args.has('r'), out)
}

pub async fn hash(session: &Session, table: &Table, args: Args, out: &mut Output<'_>) -> Result {
    let (hash_key, sort_key) = key(args)?;
    let index = table.partition_of(&hash_key, &sort_key);
    let partitions = session.cluster.partitions(table.name()).await?;
    let config = usize::try_from(index).ok().and_then(|index| partitions.get(index));
    let config = config.ok_or_else(|| Error::Nonsense(format!("there is no partition {index}")))?;
    let nodes: Vec<_> = config.secondaries.iter().map(ToString::to_string).collect();
    let fields = [
        ("key_hash", key_hash(&hash_key, &sort_key).to_string()),
        ("app_name", table.name().to_owned()),
        ("app_id", table.app_id().to_string()),
        ("partition_count", table.partition_count().to_string()),
        ("partition_index", index.to_string()),
        ("primary", config.primary.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)),
        ("secondaries", format!("[{}]", nodes.join(","))),
    ];
    out.fields("hash", &fields)?;
    Ok(Answer::Yes)
}

fn key(mut args: Args) -> std::result::Result<(Vec<u8>, Vec<u8>), Usage> {
    let key = (args.word("hash_key")?, args.word("sort_key")?);
    args.end()?;
    Ok(key)
}

fn ttl_of(value: Option<u32>) -> std::result::Result<Ttl, Usage> {
    Ok(match value {
        None => Ttl::Default,
        Some(value) => Ttl::For(seconds(value, "ttl_seconds")?),
    })
}

fn check(args: &Args) -> std::result::Result<Check, Usage> {
    let missing = |what: &str| Usage(format!("{what} is missing"));
    let sort_key = args.flag('c').ok_or_else(|| missing("-c check_sort_key"))?;
    let name = text(args.flag('t').ok_or_else(|| missing("-t check_type"))?.to_vec(), "check_type")?;
    let check_type = check_type(&name).ok_or_else(|| Usage(format!("-t: {name:?} is no check type")))?;
    Ok(Check::new(sort_key, check_type, args.flag('o').unwrap_or_default()))
}

fn check_type(name: &str) -> Option<CheckType> {
    Some(match name {
        "no_check" => CheckType::NoCheck,
        "not_exist" => CheckType::ValueNotExist,
        "not_exist_or_empty" => CheckType::ValueNotExistOrEmpty,
        "exist" => CheckType::ValueExist,
        "not_empty" => CheckType::ValueNotEmpty,
        "match_anywhere" => CheckType::MatchAnywhere,
        "match_prefix" => CheckType::MatchPrefix,
        "match_postfix" => CheckType::MatchPostfix,
        "bytes_less" => CheckType::BytesLess,
        "bytes_less_or_equal" => CheckType::BytesLessOrEqual,
        "bytes_equal" => CheckType::BytesEqual,
        "bytes_greater_or_equal" => CheckType::BytesGreaterOrEqual,
        "bytes_greater" => CheckType::BytesGreater,
        "int_less" => CheckType::IntLess,
        "int_less_or_equal" => CheckType::IntLessOrEqual,
        "int_equal" => CheckType::IntEqual,
        "int_greater_or_equal" => CheckType::IntGreaterOrEqual,
        "int_greater" => CheckType::IntGreater,
        _ => return None,
    })
}

fn checked(session: &Session, outcome: &Checked, with_value: bool, out: &mut Output<'_>) -> Result {
    out.fact(
        "passed",
        outcome.passed,
        if outcome.passed { "OK, check passed" } else { "check not passed, nothing written" },
    )?;
    if with_value {
        match &outcome.value {
            Some(value) => {
                let value = session.show(value);
                out.fact("check_value", value.as_str(), format_args!("checked value: \"{value}\""))?;
            }
            None => out.fact("check_value", Json::Null, "checked value: does not exist")?,
        }
    }
    Ok(yes(outcome.passed))
}

fn done(out: &mut Output<'_>) -> Result {
    out.fact("error", "OK", "OK")?;
    Ok(Answer::Yes)
}

fn not_found(out: &mut Output<'_>, name: &str) -> Result {
    out.fact(name, Json::Null, "not found")?;
    Ok(Answer::No)
}

fn yes(yes: bool) -> Answer {
    if yes { Answer::Yes } else { Answer::No }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_type_has_the_name_that_help_tells() {
        let help = super::super::find("cas").unwrap().help;
        let (_, listed) = help.split_once("Check types: ").unwrap();
        let listed: Vec<_> = listed.split([' ', ',']).filter(|name| check_type(name).is_some()).collect();
        let types = (0..18).map(|n| CheckType::from_wire(n).unwrap());
        assert_eq!(listed.len(), 12, "and five int_ ones");
        assert_eq!(types.count(), 12 + 5 + 1, "and no_check");
    }
}
