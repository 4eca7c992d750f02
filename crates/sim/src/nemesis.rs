//! Faults by chance.

use pegasus_mutation_log::Durability;

use crate::bus::{Happening, MS, Micros, Place, SECOND, Weather};
use crate::world::{World, drift, wall_offset};

/// One fault, and the time of the next one.
pub fn strike(world: &mut World) {
    let Some(mean) = world.chaos else { return };
    let wait = world.bus.dice.below(2 * mean);
    world.bus.after(wait, Happening::Nemesis);

    let hosts = world.hosts.len() as u64;
    let host = usize::try_from(world.bus.dice.below(hosts)).unwrap_or(0);
    let other = usize::try_from(world.bus.dice.below(hosts)).unwrap_or(0);
    let gpids = world.gpids().to_vec();
    let Some(gpid) = world.bus.dice.pick(&gpids).copied() else { return };
    // Primaries are where it hurts.
    let host = if world.bus.dice.permille(400) { world.primary(gpid).unwrap_or(host) } else { host };
    let short = [50, 300, 700, 1_200, 3_000];
    let time = world.bus.dice.pick(&short).copied().unwrap_or(50) * world.bus.dice.between(500, 1_500);
    match world.bus.dice.below(100) {
        0..19 => world.pause(host, time),
        19..22 => {
            world.drain(host);
            let back = world.bus.dice.between(500, 12_000) * MS;
            world.bus.after(back, Happening::StartHost(host));
        }
        22..42 => {
            // A power cut in page_cache mode loses what was acknowledged; scripts look at that.
            let power = world.settings_durability() == Durability::Sync && world.bus.dice.permille(400);
            world.kill(host, power);
            let down = [10, 100, 500, 2_000, 5_000];
            let down = world.bus.dice.pick(&down).copied().unwrap_or(10) * MS;
            world.bus.after(down, Happening::StartHost(host));
        }
        42..45 => {
            // Everybody at once.
            for host in 0..world.hosts.len() {
                let power = world.settings_durability() == Durability::Sync && world.bus.dice.permille(500);
                world.kill(host, power);
                let down = world.bus.dice.below(500 * MS);
                world.bus.after(down, Happening::StartHost(host));
            }
        }
        45..62 => {
            let metas = (0..world.metas.len()).map(Place::Meta);
            let places: Vec<Place> = (0..world.hosts.len()).map(Place::Host).chain(metas).collect();
            let to = world.bus.dice.pick(&places).copied().unwrap_or(Place::Meta(0));
            let both = world.bus.dice.permille(500);
            let long = time * 2;
            world.cut(Place::Host(host), to, long, both);
        }
        62..67 => world.isolate(host, time * 2),
        67..75 if host != other => world.false_reset(host, other),
        75..80 => world.slow_disk(host, time * 3),
        80..82 => {
            world.break_disk(host);
            // Somebody restarts it with a new disk controller.
            let later = world.bus.dice.between(500, 4_000) * MS;
            world.bus.after(later, Happening::Replace(host));
        }
        82..88 => strike_metas(world, time),
        88..94 => world.move_primary(gpid, other),
        94..96 => world.remove_member(gpid, other),
        96 => {
            let slower_or_faster = drift(&mut world.bus.dice);
            world.set_drift(host, slower_or_faster);
            let wall = wall_offset(&mut world.bus.dice);
            world.set_wall(other, wall);
        }
        97 => match world.bus.dice.below(3) {
            0 => {
                world.fill_disk(host, true);
                world.bus.after(time * 3, Happening::EmptyDisk(host));
            }
            // Damage, while everybody else is well: two at once may be more than a group survives.
            _ if !world.all_healthy() => {}
            1 => world.damage_rows(host, gpid),
            _ => {
                world.damage_log(host);
                world.kill(host, false);
                world.bus.after(100 * MS, Happening::StartHost(host));
            }
        },
        _ => {
            let weather = if world.bus.weather == Weather::Calm { Weather::Stormy } else { Weather::Calm };
            world.set_weather(weather);
        }
    }
}

/// One fault of the metas or their store, and the time of the next one.
pub fn strike_metas_again(world: &mut World) {
    let Some(mean) = world.meta_chaos else { return };
    let wait = world.bus.dice.below(2 * mean);
    world.bus.after(wait, Happening::MetaNemesis);
    let time = world.bus.dice.between(50, 1_500) * MS;
    strike_metas(world, time);
}

/// Something happens to the meta-servers (mostly to the one that leads) or to their store.
fn strike_metas(world: &mut World, time: Micros) {
    let metas = world.metas.len() as u64;
    let any = usize::try_from(world.bus.dice.below(metas)).unwrap_or(0);
    let meta = if world.bus.dice.permille(700) { world.leader().unwrap_or(any) } else { any };
    let long = time + world.bus.dice.below(4 * SECOND);
    match world.bus.dice.below(11) {
        10 => {
            let delay = world.bus.dice.below(1_500) * MS;
            world.lag(Place::Meta(meta), Place::Store, 100 * MS, delay);
            world.bus.after(50 * MS, Happening::KillMeta(meta));
            world.bus.after(100 * MS, Happening::StartMeta(meta));
        }
        0..3 => {
            world.kill_meta(meta);
            world.bus.after(time, Happening::StartMeta(meta));
        }
        3 => {
            for meta in 0..world.metas.len() {
                world.kill_meta(meta);
                let down = time + world.bus.dice.below(SECOND);
                world.bus.after(down, Happening::StartMeta(meta));
            }
        }
        4..6 => world.pause_meta(meta, long),
        6 => world.cut(Place::Meta(meta), Place::Store, long, true),
        // What it writes is done, and it is never told.
        7 => world.cut(Place::Store, Place::Meta(meta), long, false),
        8 => world.cut(Place::Meta(meta), Place::Store, long, false),
        _ => {
            world.stop_store();
            world.bus.after(long, Happening::StartStore);
        }
    }
}
