//! Changed inputs: pure, and the same for the same seed.

/// SplitMix64: small, fast, good enough to choose what to break.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below a bound, which must not be 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Small numbers more often than large ones.
    fn length(&mut self, most: usize) -> usize {
        let bits = self.below(usize::BITS as usize - most.max(1).leading_zeros() as usize + 1);
        self.below((1 << bits).min(most) + 1)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }
}

/// One input: a beginning, changed one to eight times.
pub(crate) fn mutate(corpus: &[Vec<u8>], words: &[&str], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(8) {
        change(&mut input, corpus, words, random);
    }
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let part = at..at + random.length(input.len() - at);
    match random.below(8) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            let noise: Vec<u8> = (0..random.length(64)).map(|_| random.byte()).collect();
            input.splice(part, noise);
        }
        2 => drop(input.drain(part)),
        3 => {
            let copy = input[part].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, copy);
        }
        4 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            let piece = other[from..from + random.length(other.len() - from)].to_vec();
            input.splice(part, piece);
        }
        5 if !words.is_empty() => {
            let word = words[random.below(words.len())];
            input.splice(at..at, word.bytes());
        }
        6 => {
            // Again and again: nesting, and size.
            let piece = input[part].to_vec();
            let times = random.length(4096).min((1 << 20) / piece.len().max(1));
            input.splice(at..at, piece.repeat(times));
        }
        _ => {
            let extremes = [0x00, 0x01, 0x7f, 0x80, 0xff];
            if let Some(byte) = input.get_mut(at) {
                *byte = extremes[random.below(extremes.len())];
            }
        }
    }
}

/// FNV-1a, for names of files.
pub(crate) fn hash(input: &[u8]) -> String {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", input.iter().fold(0xcbf2_9ce4_8422_2325, mix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_again_and_another_one_others() {
        let corpus = [b"state = RUNNING".to_vec(), Vec::new()];
        let run = |seed| {
            let mut random = Random::new(seed);
            (0..200)
                .map(|_| mutate(&corpus, &["AND"], &mut random))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!(run(1).iter().any(|input| input.len() > 1000), "also long ones");
    }
}
