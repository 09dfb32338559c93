//! Several real endpoints on loopback.
