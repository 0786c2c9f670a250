//! The permutation DeepSpeed-Chat splits its data with: MT19937 (Matsumoto and Nishimura, 1998)
//! seeded from one integer, and the shuffle of numpy's legacy `RandomState`. It exists so that a
//! split made here holds the same rows as one made there; for everything else use `base::Rng`.

const N: usize = 624;
const M: usize = 397;

/// The 32-bit Mersenne Twister, as `numpy.random.RandomState(seed)` seeds it.
pub struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl Mt19937 {
    /// The generator of an integer seed.
    pub fn new(seed: u32) -> Mt19937 {
        let mut state = [seed; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Mt19937 { state, next: N }
    }

    fn refill(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform in `0..=max` by masking and rejection, one word a try.
    fn interval(&mut self, max: u32) -> u32 {
        let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }
}

/// `RandomState(seed).shuffle(arange(n))`: a permutation of `0..n`.
pub fn permutation(seed: u32, n: usize) -> Vec<usize> {
    let mut rng = Mt19937::new(seed);
    let mut indices: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        indices.swap(i, rng.interval(i as u32) as usize);
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First output of the reference implementation with its default seed.
    #[test]
    fn generator_known_answer() {
        let mut rng = Mt19937::new(5489);
        assert_eq!([rng.next_u32(), rng.next_u32()], [3_499_211_612, 581_869_302]);
        let last = (2..10_000).map(|_| rng.next_u32()).last();
        // The C++ standard fixes the 10000th output of mt19937.
        assert_eq!(last, Some(4_123_659_995));
    }

    /// Computed with numpy 2.4: `a = arange(n); RandomState(seed).shuffle(a)`.
    #[test]
    fn permutations_equal_numpy() {
        assert_eq!(permutation(1234, 10), [7, 2, 9, 1, 0, 8, 4, 5, 6, 3]);
        assert_eq!(permutation(0, 10), [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]);
        assert_eq!(permutation(1234, 2), [0, 1]);
        assert_eq!(permutation(1234, 1), [0]);
        assert!(permutation(1234, 0).is_empty());
        for (seed, n, sum) in
            [(1234, 1000, 251_398_022), (42, 70_000, 34_960_201_271), (u32::MAX, 625, 61_837_973)]
        {
            let p = permutation(seed, n);
            let weighted: usize = p.iter().enumerate().map(|(i, x)| i * x % 1_000_003).sum();
            assert_eq!(weighted, sum, "seed {seed}, {n} rows");
        }
    }
}
