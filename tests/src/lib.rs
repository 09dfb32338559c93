//! Integration tests and benchmarks of weft: namespaces, real binaries.
