//! `matchlock-egress`: carries what a guest sends outside. Started by matchlock, not by people.

fn main() {}
