use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Between looks at a cable that is cut.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
const BUFFER_BYTES: usize = 64 * 1024;

/// A cable between a process and a server, that a test can cut: nothing gets through, nobody is told, as with a real
/// one. What was sent meanwhile arrives when it is whole again, if both ends are still there.
#[derive(Debug)]
pub struct Cable {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
}

impl Cable {
    /// Listens on an address of its own and leads to `to`.
    ///
    /// # Panics
    /// When there is no port.
    pub fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (cut, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (its_cut, its_gone) = (cut.clone(), gone.clone());
        thread::spawn(move || {
            for near in listener.incoming() {
                if its_gone.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(near), cut, gone) = (near, its_cut.clone(), its_gone.clone()) else { continue };
                thread::spawn(move || lay(&near, to, &cut, &gone));
            }
        });
        Self { address, cut, gone }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    pub fn mend(&self) {
        self.cut.store(false, Ordering::Relaxed);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

fn lay(near: &TcpStream, to: SocketAddr, cut: &AtomicBool, gone: &AtomicBool) {
    wait_whole(cut, gone);
    let Ok(far) = TcpStream::connect(to) else {
        let _ = near.shutdown(Shutdown::Both);
        return;
    };
    thread::scope(|scope| {
        scope.spawn(|| carry(near, &far, cut, gone));
        carry(&far, near, cut, gone);
    });
}

/// Until one end closes; then the other one is told, too.
fn carry(from: &TcpStream, to: &TcpStream, cut: &AtomicBool, gone: &AtomicBool) {
    let _ = copy(from, to, cut, gone);
    wait_whole(cut, gone);
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, cut: &AtomicBool, gone: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let bytes = from.read(&mut buffer)?;
        if bytes == 0 || gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        wait_whole(cut, gone);
        to.write_all(&buffer[..bytes])?;
    }
}

fn wait_whole(cut: &AtomicBool, gone: &AtomicBool) {
    while cut.load(Ordering::Relaxed) && !gone.load(Ordering::Relaxed) {
        thread::sleep(LOOK_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_cable_is_silent_and_a_mended_one_delivers() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let cable = Cable::to(server.local_addr().unwrap());
        let mut near = TcpStream::connect(cable.address()).unwrap();
        let (mut far, _) = server.accept().unwrap();
        let mut byte = [0];
        near.write_all(b"a").unwrap();
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"a");
        cable.cut();
        near.write_all(b"b").unwrap();
        far.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(far.read(&mut byte).is_err(), "nothing arrives");
        cable.mend();
        far.set_read_timeout(None).unwrap();
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
        drop(near);
        assert_eq!(far.read(&mut byte).unwrap(), 0, "the end arrives, too");
    }
}
