//! Versions of the CNI specification.

use std::fmt;

use super::error::{CniError, code};

/// A version this plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpecVersion {
    /// 0.1.0: what a configuration without a version means.
    V0_1_0,
    /// 0.2.0: adds VERSION.
    V0_2_0,
    /// 0.3.0: interfaces, several addresses, chaining.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: adds CHECK.
    V0_4_0,
    /// 1.0.0: addresses lose their `version`.
    V1_0_0,
    /// 1.1.0: adds STATUS and GC, interfaces gain `mtu`.
    V1_1_0,
}

/// All of them, oldest first.
pub const SUPPORTED: [SpecVersion; 7] = [
    SpecVersion::V0_1_0,
    SpecVersion::V0_2_0,
    SpecVersion::V0_3_0,
    SpecVersion::V0_3_1,
    SpecVersion::V0_4_0,
    SpecVersion::V1_0_0,
    SpecVersion::V1_1_0,
];

impl SpecVersion {
    /// The newest.
    pub const LATEST: Self = Self::V1_1_0;

    /// As written in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a configuration's `cniVersion`; code 1 for one we do not speak.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        // Configurations older than the key itself mean 0.1.0.
        if text.is_empty() {
            return Ok(Self::V0_1_0);
        }
        SUPPORTED.into_iter().find(|v| v.as_str() == text).ok_or_else(|| {
            let all: Vec<_> = SUPPORTED.iter().map(|v| v.as_str()).collect();
            CniError::new(
                code::INCOMPATIBLE_VERSION,
                format!("cniVersion {text:?} is not one this plugin speaks"),
            )
            .details(format!("it speaks {}", all.join(", ")))
        })
    }

    /// Code 1 if a verb is older than this version.
    pub fn require(self, least: Self, verb: &str) -> Result<(), CniError> {
        if self >= least {
            return Ok(());
        }
        Err(CniError::new(
            code::INCOMPATIBLE_VERSION,
            format!("cniVersion {self} has no {verb}; it came with {least}"),
        ))
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_round_trip() {
        for version in SUPPORTED {
            assert_eq!(SpecVersion::parse(version.as_str()).unwrap(), version);
        }
        assert_eq!(SpecVersion::parse("").unwrap(), SpecVersion::V0_1_0);
        assert_eq!(SpecVersion::parse("2.0.0").unwrap_err().code, 1);
        assert_eq!(SpecVersion::V0_3_1.require(SpecVersion::V0_4_0, "CHECK").unwrap_err().code, 1);
    }
}
