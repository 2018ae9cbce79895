//! Sockets of the tunnel: unix ones that QEMU's user may use, and the tuning of TCP ones.

use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;

use super::error::TunnelError;

/// `sun_path` has 108 bytes, one of them for the ending NUL.
const LONGEST_PATH: usize = 107;

/// How long a host may be silent with our bytes unacknowledged until it counts as gone. The kernel's own limit is
/// about a quarter of an hour, in which a migration would look alive.
const SILENCE: Duration = Duration::from_secs(60);

/// Says whether a path fits into a unix socket's address, before anything is made.
pub fn check_path(path: &Path) -> Result<(), TunnelError> {
    let length = path.as_os_str().len();
    if length > LONGEST_PATH {
        return Err(TunnelError::PathTooLong {
            path: path.to_owned(),
            length,
        });
    }
    Ok(())
}

/// The file of a listening socket: it goes when this is dropped, and nobody else removes it.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Absent is what is wanted: somebody may have removed the whole directory before.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens on `path` with mode 0660, owned by `group` where one is given. A stale file there is replaced: the
/// directory belongs to one migration of this agent.
pub(crate) fn listen(path: &Path, group: Option<u32>) -> Result<(UnixListener, SocketFile), TunnelError> {
    check_path(path)?;
    let failed = |error: io::Error| TunnelError::Listen {
        path: path.to_owned(),
        message: error.to_string(),
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    if group.is_some() {
        chown(path, None, group).map_err(failed)?;
    }
    Ok((listener, file))
}

/// Connects to a unix socket, again and again until something listens there or `patience` is over.
pub(crate) async fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + patience;
    loop {
        let error = match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        // WouldBlock: the backlog is full, the listener is busy accepting.
        let may_come = matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
        );
        if !may_come || Instant::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Prepares a TCP connection for a stream that may last for hours. Buffer sizes are left to the kernel: setting
/// them would end its automatic tuning at the far smaller `net.core.wmem_max`.
pub(crate) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &10)?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &5)?;
    setsockopt(tcp, sockopt::TcpKeepCount, &6)?;
    setsockopt(tcp, sockopt::TcpUserTimeout, &(SILENCE.as_millis() as u32))?;
    Ok(())
}
