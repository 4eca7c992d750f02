//! Faults by chance.

use pegasus_mutation_log::Durability;

use crate::bus::{Happening, MS, Place, Weather};
use crate::world::World;

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
        0..22 => world.pause(host, time),
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
            let places: Vec<Place> = (0..world.hosts.len()).map(Place::Host).chain([Place::Meta]).collect();
            let to = world.bus.dice.pick(&places).copied().unwrap_or(Place::Meta);
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
        82..85 => {
            world.stop_meta();
            world.bus.after(time, Happening::StartMeta);
        }
        85..94 => world.move_primary(gpid, other),
        94..97 => world.remove_member(gpid, other),
        _ => {
            let weather = if world.bus.weather == Weather::Calm { Weather::Stormy } else { Weather::Calm };
            world.set_weather(weather);
        }
    }
}
