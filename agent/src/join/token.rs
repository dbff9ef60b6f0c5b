//! Bootstrap tokens, `abcdef.0123456789abcdef`. Owns: their form. Never: shows a secret in a message. Pure.

use std::fmt;
use std::str::FromStr;

/// A bootstrap token: the id is public and names it, the secret proves it.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    id: String,
    secret: String,
}

impl BootstrapToken {
    /// Six characters.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Sixteen characters.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// As a bearer token.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl FromStr for BootstrapToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "a bootstrap token is six characters, a dot and sixteen characters, each a to z or 0 to 9"
                .to_owned()
        };
        let (id, secret) = text.trim().split_once('.').ok_or_else(wrong)?;
        let fits = |part: &str, length| {
            part.len() == length && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'))
        };
        if !fits(id, 6) || !fits(secret, 16) {
            return Err(wrong());
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
    }
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.(secret)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_one_form() {
        let token: BootstrapToken = " abcdef.0123456789abcdef\n".parse().expect("a token");
        assert_eq!((token.id(), token.secret()), ("abcdef", "0123456789abcdef"));
        for wrong in [
            "",
            "abcdef",
            "abcdef.0123456789abcde",
            "abcdef.0123456789abcdef0",
            "abcde.00123456789abcdef",
            "ABCDEF.0123456789abcdef",
            "abcdef-0123456789abcdef",
            "abcdef.0123456789abcde.",
        ] {
            assert!(wrong.parse::<BootstrapToken>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().expect("a token");
        assert_eq!(format!("{token:?}"), "abcdef.(secret)");
    }
}
