//! CNI: configuration, results and errors, specification 0.1.0 to 1.1.0.
