//! The local token: what tells root's own tools from other local processes.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};
use weft_proto::names::TOKEN_FILE;

use crate::files;

const DIGITS: usize = 64;

/// A secret of 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl Token {
    /// A fresh one.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0_u8; DIGITS / 2];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| io::Error::other("the kernel gives no random bytes"))?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The token of this run directory. It stays the same as long as the file
    /// is sound; a damaged one, or one that others could read, is replaced.
    pub fn load_or_create(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join(TOKEN_FILE);
        let private = fs::symlink_metadata(&path).is_ok_and(|meta| {
            meta.is_file()
                && meta.permissions().mode() & 0o077 == 0
                && meta.uid() == effective_uid()
        });
        if private && let Ok(token) = Self::load(run_dir) {
            return Ok(token);
        }
        files::private_dir(run_dir)?;
        let token = Self::random()?;
        files::replace(&path, format!("{}\n", token.0).as_bytes(), files::PRIVATE)?;
        Ok(token)
    }

    /// Reads the token of a run directory, as a client does.
    pub fn load(run_dir: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(run_dir.join(TOKEN_FILE))?;
        let text = text.trim_end();
        if text.len() != DIGITS || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a token: 64 hexadecimal digits are expected",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// For the header of a request.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not depend on where the first difference is.
    pub fn matches(&self, given: &[u8]) -> bool {
        let mine = self.0.as_bytes();
        let mut difference = u8::from(mine.len() != given.len());
        for (index, byte) in mine.iter().enumerate() {
            difference |= byte ^ given.get(index).copied().unwrap_or(0);
        }
        std::hint::black_box(difference) == 0
    }
}

fn effective_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_made_kept_and_replaced_when_it_leaked() {
        let dir = std::env::temp_dir().join(format!("weft-token-{}", std::process::id()));
        let run = dir.join("run");
        let first = Token::load_or_create(&run).unwrap();
        let path = run.join(TOKEN_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Token::load_or_create(&run).unwrap(), first);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", first.reveal()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let second = Token::load_or_create(&run).unwrap();
        assert_ne!(second, first);
        fs::write(&path, "short").unwrap();
        assert!(Token::load(&run).is_err());
        assert_ne!(Token::load_or_create(&run).unwrap(), second);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn only_the_whole_token_matches() {
        let token = Token::random().unwrap();
        let text = token.reveal().to_owned();
        assert!(token.matches(text.as_bytes()));
        assert!(!token.matches(b"") && !token.matches(&text.as_bytes()[1..]));
        assert!(!token.matches(format!("{text}0").as_bytes()));
        assert!(!token.matches(Token::random().unwrap().reveal().as_bytes()));
        assert!(!format!("{token:?}").contains(&text));
    }
}
