//! Page tokens: where a list goes on. Opaque to callers, and good only for the list that they were made for.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use drover_proto::failure::{Failure, Reason};
use serde::{Deserialize, Serialize};

/// Longest token that is read, in bytes.
const MAX_TOKEN_BYTES: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Token {
    /// What is listed: the RPC and its filter.
    of: String,
    /// The last key of the page before.
    after: String,
}

/// The token of the page after `after`.
pub(super) fn token(of: &str, after: &str) -> String {
    let token = Token {
        of: of.to_owned(),
        after: after.to_owned(),
    };
    // A struct of two strings is always JSON.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// The last key of the page before; none for the first page.
pub(super) fn after(of: &str, token: &str) -> Result<Option<String>, Failure> {
    if token.is_empty() {
        return Ok(None);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(invalid());
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    let read: Token = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    if read.of == of {
        Ok(Some(read.after))
    } else {
        Err(invalid())
    }
}

/// The last key of the page before, read; a key that this server would not write is an invalid token.
pub(super) fn key<T, E>(of: &str, token: &str, read: impl FnOnce(&str) -> Result<T, E>) -> Result<Option<T>, Failure> {
    match after(of, token)? {
        None => Ok(None),
        Some(text) => read(&text).map(Some).map_err(|_| invalid()),
    }
}

fn invalid() -> Failure {
    Failure::new(Reason::PageTokenInvalid, "this page token was not made for this list").with_field(
        "page_token",
        "leave it empty, or pass next_page_token with the same filter",
    )
}

/// How many a page may have.
pub(super) fn size(asked: i32, default: u32) -> Result<u32, Failure> {
    const MOST: u32 = 1000;
    match u32::try_from(asked) {
        Ok(0) => Ok(default),
        Ok(some) => Ok(some.min(MOST)),
        Err(_) => Err(Failure::invalid("page_size", "must not be negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_list_only() {
        let made = token("migrations state=RUNNING", "some key");
        assert_eq!(
            after("migrations state=RUNNING", &made).unwrap().as_deref(),
            Some("some key")
        );
        assert_eq!(after("anything", "").unwrap(), None);
        for (of, given) in [
            ("migrations", made.as_str()),
            ("migrations", "!"),
            ("migrations", "e30"),
            ("x", &"a".repeat(9999)),
        ] {
            assert_eq!(after(of, given).unwrap_err().reason, Reason::PageTokenInvalid);
        }
    }

    #[test]
    fn a_key_that_nobody_wrote_is_an_invalid_token() {
        let read = |text: &str| text.parse::<u8>();
        assert_eq!(key("x", &token("x", "7"), read).unwrap(), Some(7));
        assert_eq!(key("x", "", read).unwrap(), None);
        let forged = key("x", &token("x", "seven"), read).unwrap_err();
        assert_eq!(forged.reason, Reason::PageTokenInvalid);
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(size(0, 50).unwrap(), 50);
        assert_eq!(size(7, 50).unwrap(), 7);
        assert_eq!(size(5000, 50).unwrap(), 1000);
        assert!(size(-1, 50).is_err());
    }
}
