//! What a program needs to run: read from its ELF header.

/// Machine a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// As container images call it.
    pub fn oci(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

const PT_INTERP: u32 = 3;

/// The machine of a static program for Linux, or why it is none.
pub fn inspect(bytes: &[u8]) -> Result<Arch, String> {
    let short = || "its ELF header is cut off; build it again".to_owned();
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("not a 64-bit little-endian ELF program; build it for Linux".to_owned());
    }
    let arch = match u16_at(bytes, 18).ok_or_else(short)? {
        62 => Arch::X86_64,
        183 => Arch::Aarch64,
        other => return Err(format!("machine {other} is not supported (x86_64 and aarch64 are)")),
    };
    let table = usize::try_from(u64_at(bytes, 32).ok_or_else(short)?).map_err(|_| short())?;
    let entry = usize::from(u16_at(bytes, 54).ok_or_else(short)?);
    let count = usize::from(u16_at(bytes, 56).ok_or_else(short)?);
    for number in 0..count {
        let at = entry.checked_mul(number).and_then(|offset| table.checked_add(offset));
        let kind = at.and_then(|at| u32_at(bytes, at)).ok_or_else(short)?;
        if kind == PT_INTERP {
            return Err("it is linked dynamically, and an empty root has no libraries; \
                 build it with `-C target-feature=+crt-static`"
                .to_owned());
        }
    }
    Ok(arch)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of headers only, with these segments.
    fn program(machine: u16, segments: &[u32]) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01".to_vec();
        out.resize(64, 0);
        out[18..20].copy_from_slice(&machine.to_le_bytes());
        out[32..40].copy_from_slice(&64_u64.to_le_bytes());
        out[54..56].copy_from_slice(&56_u16.to_le_bytes());
        out[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        for kind in segments {
            let mut header = kind.to_le_bytes().to_vec();
            header.resize(56, 0);
            out.extend(header);
        }
        out
    }

    #[test]
    fn static_programs_and_others() {
        assert_eq!(inspect(&program(62, &[1, 2])), Ok(Arch::X86_64));
        assert_eq!(inspect(&program(183, &[1])), Ok(Arch::Aarch64));
        assert!(inspect(&program(62, &[1, PT_INTERP])).unwrap_err().contains("dynamically"));
        assert!(inspect(&program(40, &[])).unwrap_err().contains("machine 40"));
        assert!(inspect(b"#!/bin/sh\n").unwrap_err().contains("not a 64-bit"));
    }

    #[test]
    fn every_cut_is_an_error_and_no_panic() {
        let whole = program(62, &[1, 2]);
        for length in 0..whole.len() - 52 {
            assert!(inspect(&whole[..length]).is_err(), "{length}");
        }
        let mut far = whole;
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(inspect(&far).unwrap_err().contains("cut off"));
    }
}
