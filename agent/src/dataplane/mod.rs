//! Data plane: what the kernel should hold, what it holds, and the difference.

pub mod intent;
