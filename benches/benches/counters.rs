//! Counting beside the bare conditional update.

fn main() {}
