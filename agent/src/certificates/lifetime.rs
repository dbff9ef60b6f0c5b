//! When a certificate is due. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Its first moment.
    pub not_before: Timestamp,
    /// Its last.
    pub not_after: Timestamp,
}

/// Where a moment lies in a lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Before it.
    NotYet,
    /// In it.
    Valid,
    /// Behind it.
    Expired,
}

impl Lifetime {
    /// Where `now` lies.
    pub fn standing(self, now: Timestamp) -> Standing {
        if now < self.not_before {
            Standing::NotYet
        } else if now <= self.not_after {
            Standing::Valid
        } else {
            Standing::Expired
        }
    }

    /// When to renew it: between 70 and 90 % of its life, as `jitter` in 0..1 says, so that nodes that joined together do not
    /// all come at once (`certificate_manager.go`, `nextRotationDeadline`).
    ///
    /// `since` is when it came. Signers date certificates back, and of a short one most may lie behind: it is used for half of
    /// what was left at least.
    pub fn renew_at(self, jitter: f64, since: Timestamp) -> Timestamp {
        let share = |from: Timestamp, part: f64| {
            let millis = self.not_after.duration_since(from).as_millis().max(0);
            // At most as long as the certificate's life, which is far below what either type holds.
            #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "see above")]
            let part = SignedDuration::from_millis((millis as f64 * part).round() as i64);
            from.checked_add(part).unwrap_or(self.not_after)
        };
        let point = share(self.not_before, 0.7 + 0.2 * jitter.clamp(0.0, 1.0));
        point.max(share(since.max(self.not_before), 0.5)).min(self.not_after)
    }
}

/// How long to wait for a date, in one go of at most `longest`.
pub fn pause(due: Timestamp, now: Timestamp, longest: Duration) -> Duration {
    Duration::try_from(due.duration_since(now)).unwrap_or_default().min(longest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn life(from: i64, to: i64) -> Lifetime {
        Lifetime { not_before: at(from), not_after: at(to) }
    }

    #[test]
    fn a_year_is_renewed_in_its_last_third_but_not_its_last_tenth() {
        let year = life(0, 31_536_000);
        assert_eq!(year.renew_at(0.0, at(0)), at(22_075_200));
        assert_eq!(year.renew_at(1.0, at(0)), at(28_382_400));
    }

    #[test]
    fn a_short_certificate_that_was_dated_back_is_used_for_a_while() {
        // A minute ahead, five behind: 70 % lies in the past.
        assert_eq!(life(0, 360).renew_at(0.0, at(300)), at(330));
    }

    #[test]
    fn a_moment_is_before_in_or_behind() {
        let cases =
            [(9, Standing::NotYet), (10, Standing::Valid), (20, Standing::Valid), (21, Standing::Expired)];
        for (now, standing) in cases {
            assert_eq!(life(10, 20).standing(at(now)), standing, "{now}");
        }
    }

    #[test]
    fn a_date_in_the_past_is_not_waited_for() {
        let longest = Duration::from_secs(60);
        assert_eq!(pause(at(10), at(20), longest), Duration::ZERO);
        assert_eq!(pause(at(30), at(20), longest), Duration::from_secs(10));
        assert_eq!(pause(at(3000), at(20), longest), longest);
    }

    proptest! {
        #[test]
        fn renewal_is_inside_of_the_life_and_in_time(
            from in 0i64..4_000_000_000,
            length in 1i64..400_000_000,
            jitter in 0.0f64..1.0,
            since in 0.0f64..1.0,
        ) {
            let life = life(from, from + length);
            #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
            let since = at(from + (since * length as f64) as i64);
            let due = life.renew_at(jitter, since);
            prop_assert!(due >= life.not_before && due <= life.not_after);
            prop_assert!(due >= since, "it is used before it is renewed");
            // The point itself where the certificate came fresh.
            let fresh = life.renew_at(jitter, life.not_before).duration_since(life.not_before).as_millis();
            prop_assert!(fresh >= i128::from(length) * 699 && fresh <= i128::from(length) * 901);
            // More jitter is later.
            prop_assert!(life.renew_at(1.0, since) >= due);
        }

        #[test]
        fn any_lifetime_has_an_answer(from: i32, to: i32, jitter: f64, since: i32) {
            let life = life(from.into(), to.into());
            prop_assert!(life.renew_at(jitter, at(since.into())) <= life.not_after.max(life.not_before));
        }
    }
}
