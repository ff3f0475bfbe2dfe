//! What callers and receivers see: the real binary, real sockets, a real store.
//!
//! One file for each topic, named `surface_topic`; what they share stands in `harness`.

#![cfg(test)]

mod harness;

mod api_admin;
mod api_audit;
mod api_auth;
mod api_challenge;
mod api_contacts;
mod api_deliveries;
mod api_errors;
mod api_failed_tokens;
mod api_feed;
mod api_subscription;
mod cli;
mod cli_events;
mod congress;
mod delivery_crash;
mod delivery_order;
mod delivery_restart;
mod delivery_retry;
mod delivery_scale;
mod delivery_signing;
mod delivery_targets;
mod harness_postgres;
mod hostile_callers;
mod leaks;
mod listener_tls;
mod nodes_conditions;
mod nodes_database;
mod nodes_failures;
mod nodes_limits;
mod nodes_store;
mod nodes_tls;
mod nodes_went_back;
mod secrets_at_rest;
mod store_copy;
mod store_copy_killed;
mod store_copy_refused;
mod store_disk_faults;
mod store_disk_full;
mod store_power_cut;
