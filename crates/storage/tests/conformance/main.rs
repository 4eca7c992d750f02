//! What every engine must do, whatever it is made of: `storage::engine`'s promises as tests.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "everything here is a test")]

mod basics;
mod crash;
mod full_disk;
mod harness;
mod learning;
mod model;
mod small_disk;
mod upkeep;

/// One test per engine and promise.
macro_rules! conformance {
    ($engine:ident = $kind:ident: $($subject:ident { $($test:ident,)* })*) => {
        mod $engine {
            $($(
                #[test]
                fn $test() {
                    super::$subject::$test(pegasus_storage::EngineKind::$kind);
                }
            )*)*
        }
    };
}

conformance! {
    lsm = Lsm:
    basics {
        a_mutation_is_seen_as_a_whole,
        damage_and_disorder_change_nothing,
        ranges_have_bounds_and_two_directions,
        long_keys_and_large_values,
        other_engines_are_not_overlooked,
        no_view_sees_half_a_mutation,
    }
    model { random_operations_equal_a_map, }
    crash { killed_and_reopened, }
    full_disk { a_full_disk_loses_nothing, dropping_returns_the_space, }
    learning { rows_stream_while_writes_go_on, a_copy_is_durable_when_it_is_finished, }
    upkeep {
        flush_makes_durable,
        compaction_drops_what_nobody_sees,
        expired_rows_go_when_both_clocks_are_past,
        views_outlive_compaction,
        an_old_memtable_is_flushed,
        dropping_ends_background_work,
        many_small_flushes_lose_no_table,
    }
}

conformance! {
    sled = Sled:
    basics {
        a_mutation_is_seen_as_a_whole,
        damage_and_disorder_change_nothing,
        ranges_have_bounds_and_two_directions,
        long_keys_and_large_values,
        other_engines_are_not_overlooked,
        no_view_sees_half_a_mutation,
    }
    model { random_operations_equal_a_map, }
    crash { killed_and_reopened, }
    full_disk { a_full_disk_loses_nothing, dropping_returns_the_space, }
    learning { rows_stream_while_writes_go_on, a_copy_is_durable_when_it_is_finished, }
    upkeep {
        flush_makes_durable,
        expired_rows_go_when_both_clocks_are_past,
    }
}

conformance! {
    memory = Memory:
    basics {
        a_mutation_is_seen_as_a_whole,
        damage_and_disorder_change_nothing,
        ranges_have_bounds_and_two_directions,
        long_keys_and_large_values,
        no_view_sees_half_a_mutation,
    }
    model { random_operations_equal_a_map, }
    learning { rows_stream_while_writes_go_on, }
}
