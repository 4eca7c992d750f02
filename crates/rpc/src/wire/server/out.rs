//! Encoded answers that the socket has not taken yet.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

/// Small answers share a buffer of this size and thereby a write. What was written is given back buffer by buffer; in
/// a single one the written part would stay, and be grown with the rest.
const PIECE_BYTES: usize = 32 << 10;
/// A buffer with less room than this gets no more answers, nor does one that has grown: one that does not fit makes it
/// grow.
const MIN_ROOM: usize = 4 << 10;
/// Empty buffers that are kept for the next answers of anybody: as many connections as one turn serves.
const MAX_SPARE: usize = 64;

/// Empty buffers, so that idle connections hold none.
#[derive(Default)]
pub struct Spare(RefCell<Vec<BytesMut>>);

impl Spare {
    fn take(&self) -> BytesMut {
        self.0.borrow_mut().pop().unwrap_or_else(|| BytesMut::with_capacity(PIECE_BYTES))
    }

    fn give(&self, mut piece: BytesMut) {
        piece.clear();
        let mut spare = self.0.borrow_mut();
        if spare.len() < MAX_SPARE {
            // Takes back the part that was written; allocates nothing.
            piece.reserve(PIECE_BYTES);
            if piece.capacity() < 2 * PIECE_BYTES {
                spare.push(piece);
            }
        }
    }
}

#[derive(Default)]
pub struct Out {
    /// The first one is being written. None of them is empty.
    pieces: VecDeque<BytesMut>,
    len: usize,
}

impl Out {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets an answer be encoded at the end; how many bytes it has.
    pub fn append(&mut self, spare: &Spare, encode: impl FnOnce(&mut BytesMut)) -> usize {
        let mut last = match self.pieces.pop_back() {
            Some(last) if last.len() < PIECE_BYTES && last.capacity() - last.len() >= MIN_ROOM => last,
            full => {
                self.pieces.extend(full);
                spare.take()
            }
        };
        let before = last.len();
        encode(&mut last);
        let added = last.len() - before;
        self.len += added;
        self.pieces.push_back(last);
        added
    }

    /// What is to be written next. Empty when everything is written.
    pub fn next(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    /// The first `bytes` of [`Self::next`] are written.
    pub fn written(&mut self, spare: &Spare, bytes: usize) {
        self.len -= bytes;
        match self.pieces.front_mut() {
            Some(first) if bytes < first.len() => first.advance(bytes),
            _ => self.pieces.pop_front().into_iter().for_each(|piece| spare.give(piece)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_written_in_order_and_given_back() {
        let (mut out, spare) = (Out::default(), Spare::default());
        let (mut want, mut got) = (Vec::new(), Vec::new());
        for n in 0..100u8 {
            let answer = vec![n; 1 + usize::from(n) * 1000];
            assert_eq!(out.append(&spare, |buf| buf.extend_from_slice(&answer)), answer.len());
            want.extend_from_slice(&answer);
            // About half of it.
            let bytes = out.next().len().min(answer.len() / 2);
            got.extend_from_slice(&out.next()[..bytes]);
            out.written(&spare, bytes);
            assert_eq!(out.len(), want.len() - got.len());
            assert_eq!(out.pieces.iter().map(BytesMut::len).sum::<usize>(), out.len());
            assert!(out.pieces.iter().all(|piece| piece.len() < PIECE_BYTES + 100_000));
        }
        while !out.is_empty() {
            let bytes = out.next().len();
            assert!(bytes > 0);
            got.extend_from_slice(out.next());
            out.written(&spare, bytes);
        }
        assert_eq!(got, want);
        assert!(out.next().is_empty() && out.pieces.is_empty(), "an idle connection holds no buffer");
        let spare = spare.0.borrow();
        assert!(spare.len() <= MAX_SPARE);
        assert!(spare.iter().all(|b| b.is_empty() && (PIECE_BYTES..2 * PIECE_BYTES).contains(&b.capacity())));
    }

    #[test]
    fn small_answers_use_one_buffer_again_and_again() {
        let (mut out, spare) = (Out::default(), Spare::default());
        for _ in 0..100 {
            for _ in 0..20 {
                out.append(&spare, |buf| buf.extend_from_slice(&[7; 1000]));
            }
            assert_eq!(out.next().len(), 20_000);
            out.written(&spare, 15_000);
            out.written(&spare, 5_000);
            assert_eq!((out.len(), spare.0.borrow().len()), (0, 1));
        }
    }
}
