//! A long frame while it arrives.

use std::io;

use bytes::Bytes;
use memmap2::MmapMut;

/// Has pages of its own, which take memory once something is written to them, and none when the connection has ended.
/// From the allocator they would be copied to grow, and kept for later: strangers made an idle meta-server keep 200 MiB.
pub struct LongFrame {
    map: MmapMut,
    len: usize,
}

impl LongFrame {
    /// A frame of `total` bytes of which `received` is the beginning.
    pub fn begin(received: &[u8], total: usize) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(total)?;
        map[..received.len()].copy_from_slice(received);
        Ok(Self { map, len: received.len() })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_whole(&self) -> bool {
        self.len == self.map.len()
    }

    /// Where the next bytes go, at most so many.
    pub fn next(&mut self, most: usize) -> &mut [u8] {
        let end = self.map.len().min(self.len + most);
        &mut self.map[self.len..end]
    }

    /// So many bytes of [`Self::next`] have arrived.
    pub fn filled(&mut self, bytes: usize) {
        self.len += bytes;
    }

    pub fn finish(self) -> Bytes {
        Bytes::from_owner(self.map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrives_in_pieces() {
        let want: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut frame = LongFrame::begin(&want[..10], want.len()).unwrap();
        while !frame.is_whole() {
            let at = frame.len();
            let next = frame.next(30_000);
            assert!((1..=30_000).contains(&next.len()));
            next.copy_from_slice(&want[at..at + next.len()]);
            let n = next.len();
            frame.filled(n);
        }
        assert_eq!(frame.finish(), want);
    }
}
