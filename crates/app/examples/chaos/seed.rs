//! Random numbers from a seed: splitmix64, so that a round is the same on every machine and with every version of every dependency.

use std::ops::RangeInclusive;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Seed(u64);

impl Seed {
    /// The stream of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own for the `index`-th part of something, whatever is drawn from this one.
    pub(crate) fn part(&self, index: u64) -> Self {
        let mut part = Self(self.0 ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        part.next();
        part
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in the range.
    pub(crate) fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// True once in `times`, on the average.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.next().is_multiple_of(times)
    }

    /// One of the choices, each as likely as its weight says.
    pub(crate) fn weighted<T: Copy>(&mut self, choices: &[(u64, T)]) -> T {
        let all: u64 = choices.iter().map(|(weight, _)| weight).sum();
        let mut at = self.next() % all;
        for (weight, choice) in choices {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *choice,
            }
        }
        unreachable!("the weights add up to more than any remainder of their sum")
    }

    /// One of the elements.
    pub(crate) fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let index = self.next() % from.len() as u64;
        &from[usize::try_from(index).expect("an index of a slice")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_known_numbers_of_splitmix64() {
        let mut seed = Seed::new(1_234_567);
        assert_eq!([seed.next(), seed.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn a_part_does_not_depend_on_what_was_drawn_for_another() {
        let base = Seed::new(7);
        let first = base.part(3).next();
        let mut other = base.clone().part(2);
        other.next();
        assert_eq!(base.part(3).next(), first);
        assert_ne!(base.part(4).next(), first);
    }

    #[test]
    fn choices_of_weight_nought_are_never_taken() {
        let mut seed = Seed::new(1);
        assert!((0..1000).all(|_| seed.weighted(&[(0, 'a'), (3, 'b'), (1, 'c')]) != 'a'));
    }
}
