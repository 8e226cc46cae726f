//! One suite for both databases: every test of [`store_suite!`] is expanded for SQLite and for PostgreSQL.
//!
//! SQLite always runs. PostgreSQL runs when `TRAINYARD_TEST_POSTGRES` holds the URL of a server where schemas may be made
//! (`scripts/postgres start` prints one); otherwise each of its tests says by name that it was skipped.

mod apps;
mod artifacts;
mod attempt_nodes;
mod backup;
mod check;
mod concurrency;
mod database;
mod experiments;
mod filters;
mod fixtures;
mod lists;
mod patches;
mod queue;
mod registered_environments;
mod runs;
mod transitions;
mod upgrade;
mod workspaces;

/// Expands each named test once for each database.
macro_rules! store_suite {
    ($($noun:ident: $($test:ident),+ $(,)?;)+) => {
        mod sqlite {
            $(mod $noun {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let bench = $crate::database::sqlite().await;
                    $crate::$noun::$test(&bench).await;
                    bench.close().await;
                })+
            })+
        }
        mod postgres {
            $(mod $noun {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let Some(bench) = $crate::database::postgres(concat!(stringify!($noun), "::", stringify!($test))).await else { return };
                    $crate::$noun::$test(&bench).await;
                    bench.close().await;
                })+
            })+
        }
    };
}

store_suite! {
    workspaces:
        a_workspace_is_found_by_its_path_in_any_case,
        a_path_is_taken_once_whatever_its_case,
        opening_again_finds_what_was_stored;
    apps:
        an_app_is_found_with_its_grants,
        a_new_secret_and_a_deletion_are_seen_at_once,
        debug_output_holds_no_secret;
    experiments:
        creating_twice_gives_the_same_experiment,
        sixteen_callers_at_once_get_one_experiment,
        a_patch_merges_tags_and_archives,
        a_rename_to_a_taken_name_is_refused,
        an_experiment_with_runs_is_not_deleted,
        lists_page_through_all_experiments_newest_first,
        lists_filter_by_view_and_name;
    runs:
        a_run_comes_back_as_it_was_given,
        runs_are_numbered_per_experiment_from_one,
        the_experiment_knows_its_latest_run,
        a_taken_id_gives_the_run_that_has_it,
        the_same_id_in_two_workspaces_is_two_runs,
        a_run_of_no_experiment_is_refused_and_leaves_nothing,
        the_snapshot_and_the_first_event_are_stored_with_the_run,
        the_character_nul_is_refused_everywhere,
        events_are_numbered_without_gaps;
    patches:
        a_patch_merges_and_keeps_what_it_does_not_name,
        a_property_keeps_its_first_value,
        tags_are_removed_by_name,
        warnings_are_added_once,
        a_run_becomes_a_child_with_its_whole_tree,
        the_target_of_a_managed_run_is_fixed,
        patching_nothing_is_not_found;
    transitions:
        a_managed_run_goes_through_its_whole_life,
        a_failed_run_says_why_in_its_error,
        a_client_error_is_kept_when_the_run_fails,
        a_fenced_report_changes_nothing,
        refusals_are_told_apart,
        a_start_time_is_set_by_the_first_start_only,
        cancelling_a_waiting_run_ends_it,
        a_retry_keeps_the_run_and_sets_the_files_of_the_first_attempt_aside,
        a_drained_server_stays_drained;
    lists:
        pages_hold_every_run_once_in_every_order,
        runs_without_a_start_come_last,
        hidden_runs_and_other_parents_are_left_out,
        a_token_of_another_query_is_refused,
        counts_are_by_state;
    filters:
        filters_mean_what_core_says,
        the_filters_of_the_sdk_find_their_runs;
    queue:
        heads_have_the_first_runs_of_every_share,
        shares_are_told_apart_by_user_and_experiment,
        busy_slots_and_runs_in_execution_follow_the_state,
        runs_ahead_counts_up_to_the_limit,
        a_run_takes_its_slots_and_one_that_takes_more_than_there_are_hides_nobody;
    attempt_nodes:
        every_node_learns_what_the_others_said,
        a_node_never_goes_back_and_its_end_stays,
        a_node_of_an_attempt_that_was_given_up_writes_nothing;
    registered_environments:
        equal_content_is_the_same_version_and_other_content_the_next,
        a_version_by_its_name_is_never_changed,
        the_versions_of_a_name_come_in_pages_the_latest_first,
        a_label_stands_at_one_version,
        a_list_gives_the_latest_of_each_name_page_by_page,
        names_of_two_workspaces_do_not_meet,
        only_environments_that_a_run_of_the_workspace_used_are_listed;
    artifacts:
        an_artifact_is_replaced_but_keeps_its_creation,
        artifacts_are_listed_by_prefix_in_the_order_of_bytes,
        an_environment_is_kept_as_first_stored;
    backup:
        a_restored_server_has_everything_and_is_drained,
        a_backup_moves_to_the_other_database,
        a_backup_is_of_one_moment_while_runs_are_made,
        a_log_that_is_sealed_during_the_backup_is_in_it,
        a_restore_refuses_what_is_occupied,
        a_restore_that_was_cut_is_finished_by_the_same_command,
        a_missing_blob_is_said_and_does_not_stop_a_backup,
        the_list_of_tables_is_the_schema;
    check:
        a_sound_store_has_no_findings,
        broken_rows_are_found_and_what_can_be_is_repaired,
        blobs_are_compared_with_the_rows_that_name_them,
        logs_that_were_never_sealed_are_sealed_or_said_to_be_lost,
        what_nothing_names_goes_when_it_is_old;
    upgrade:
        a_database_of_the_first_schema_is_brought_forward,
        a_database_of_a_newer_server_is_refused,
        an_old_database_is_backed_up_and_restored_forward;
    concurrency:
        sixteen_creations_of_one_id_make_one_run,
        many_creations_at_once_are_numbered_without_gaps,
        a_bad_run_does_not_fail_its_neighbours,
        concurrent_admissions_have_one_winner,
        a_dropped_caller_leaves_all_or_nothing,
        mixed_writers_do_not_block_each_other_for_good,
        a_closed_store_says_so;
}
