//! Deliveries one by one: what has failed or was given up, and sending again.
