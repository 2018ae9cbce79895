//! A TLS connection after its handshake, as two independent directions with large buffers.
//!
//! rustls does all of TLS; this file only moves bytes between it and the socket. tokio-rustls would read at most
//! 4 KiB at once (that is rustls' own read size), four system calls a record: here the socket is read in large
//! pieces, and what was encrypted leaves in one vectored write.

use std::io::{self, BufRead, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::rustls::Connection;

/// How much ciphertext is read at once while much is coming.
const READ_SIZE: usize = 256 * 1024;
/// And while nothing was read yet: most channels have one silent direction.
const FIRST_READ_SIZE: usize = 16 * 1024;

type Shared = Arc<Mutex<Connection>>;

/// The direction towards the other agent.
pub(crate) struct Sender {
    connection: Shared,
    tcp: OwnedWriteHalf,
}

/// The direction from the other agent.
pub(crate) struct Receiver {
    connection: Shared,
    tcp: OwnedReadHalf,
    cipher: Vec<u8>,
    start: usize,
    end: usize,
}

/// Splits an established connection. What rustls holds already (tickets, early records) stays in it.
pub(crate) fn split(tcp: TcpStream, connection: impl Into<Connection>) -> (Sender, Receiver) {
    let mut connection = connection.into();
    // The relay sends pieces of its own bounded size and waits until they have left: no second limit.
    connection.set_buffer_limit(None);
    let connection = Arc::new(Mutex::new(connection));
    let (read, write) = tcp.into_split();
    let receiver = Receiver {
        connection: Arc::clone(&connection),
        tcp: read,
        cipher: Vec::new(),
        start: 0,
        end: 0,
    };
    (Sender { connection, tcp: write }, receiver)
}

/// A panic while it was held would have ended the channel: nobody uses a half-changed connection afterwards.
fn lock(connection: &Shared) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sender {
    /// Encrypts and sends all of it; returns when the kernel has taken the last byte.
    pub(crate) async fn send(&mut self, plaintext: &[u8]) -> io::Result<()> {
        let mut rest = plaintext;
        while !rest.is_empty() {
            let taken = lock(&self.connection).writer().write(rest)?;
            rest = &rest[taken..];
            self.flush().await?;
        }
        Ok(())
    }

    /// Announces the end of this direction and closes its half of the TCP connection.
    pub(crate) async fn finish(mut self) -> io::Result<()> {
        lock(&self.connection).send_close_notify();
        self.flush().await
        // Dropping the write half shuts it down; the other direction stays open.
    }

    async fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.write_some() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.tcp.writable().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// One write to the socket; true when nothing is left to send.
    fn write_some(&mut self) -> io::Result<bool> {
        let mut connection = lock(&self.connection);
        if connection.wants_write() {
            connection.write_tls(&mut Nonblocking(&self.tcp))?;
        }
        Ok(!connection.wants_write())
    }
}

/// rustls' way to a socket: a full one is an error of kind `WouldBlock`.
struct Nonblocking<'a>(&'a OwnedWriteHalf);

impl Write for Nonblocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Receiver {
    /// Waits for plaintext and appends it to `plaintext`, which holds at most about `limit` bytes afterwards.
    /// False is the announced end; an end that was not announced is `UnexpectedEof`.
    pub(crate) async fn receive(&mut self, plaintext: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
        loop {
            let ended = self.decrypt(plaintext, limit)?;
            if !plaintext.is_empty() {
                return Ok(true);
            }
            if ended {
                return Ok(false);
            }
            self.fill().await?;
        }
    }

    /// Reads what the socket has. The buffer is empty here: `decrypt` leaves ciphertext only when it had no room
    /// for plaintext, and then `receive` has returned.
    async fn fill(&mut self) -> io::Result<()> {
        loop {
            self.tcp.readable().await?;
            let size = self.cipher.len().clamp(FIRST_READ_SIZE, READ_SIZE);
            self.cipher.resize(size, 0);
            match self.tcp.try_read(&mut self.cipher) {
                Ok(0) => {
                    // rustls remembers it and says whether it was announced.
                    lock(&self.connection).read_tls(&mut io::empty())?;
                    return Ok(());
                }
                Ok(read) => {
                    (self.start, self.end) = (0, read);
                    if read == self.cipher.len() && read < READ_SIZE {
                        // A grown length is the size of the next read.
                        self.cipher.resize(read * 4, 0);
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Decrypts what was read, as far as there is room. True when the other side announced its end.
    fn decrypt(&mut self, plaintext: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
        let mut connection = lock(&self.connection);
        loop {
            if drain(&mut connection, plaintext)? {
                return Ok(true);
            }
            if self.start == self.end || plaintext.len() >= limit {
                return Ok(false);
            }
            let mut unread = &self.cipher[self.start..self.end];
            self.start += connection.read_tls(&mut unread)?;
            connection
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

/// Takes all plaintext that rustls has ready. True at the announced end.
fn drain(connection: &mut Connection, plaintext: &mut Vec<u8>) -> io::Result<bool> {
    let mut reader = connection.reader();
    loop {
        let taken = match reader.fill_buf() {
            Ok([]) => return Ok(true),
            Ok(piece) => {
                plaintext.extend_from_slice(piece);
                piece.len()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        reader.consume(taken);
    }
}
