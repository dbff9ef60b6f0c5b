//! Ports that are about to become free.
//!
//! Owns: how long that is waited for. A daemon that was killed between fork and exec of a supervisor leaves its sockets to
//! the child for a moment, and its successor must not give up over that. Never: takes a port from anybody.

use std::time::Duration;

/// How often, and how long apart, a port that is taken is tried again.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Binds; while `taken` says that the port is in use, again for two seconds.
///
/// # Errors
/// The last attempt's, or the first of another kind.
pub async fn when_free<T, E, F>(mut bind: impl FnMut() -> F, taken: impl Fn(&E) -> bool) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    for _ in 0..TRIES {
        match bind().await {
            Err(error) if taken(&error) => {}
            other => return other,
        }
        tokio::time::sleep(PAUSE).await;
    }
    bind().await
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[tokio::test]
    async fn a_port_that_becomes_free_is_taken_and_another_error_told_at_once() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = held.local_addr().expect("its address");
        let mut held = Some(held);
        let mut tries = 0;
        let bind = || {
            tries += 1;
            if tries == 3 {
                held.take();
            }
            tokio::net::TcpListener::bind(address)
        };
        when_free(bind, |error: &Error| error.kind() == ErrorKind::AddrInUse).await.expect("free by then");
        assert_eq!(tries, 3);
        let mut tries = 0;
        let refused = || {
            tries += 1;
            std::future::ready(Err::<(), _>(Error::from(ErrorKind::PermissionDenied)))
        };
        assert!(when_free(refused, |error: &Error| error.kind() == ErrorKind::AddrInUse).await.is_err());
        assert_eq!(tries, 1);
    }
}
