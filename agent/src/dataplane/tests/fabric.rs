//! Three nodes on one underlay, pods that talk.
