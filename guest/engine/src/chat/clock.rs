//! Dates, as C's `strftime` writes them.

use std::fmt::Write;

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// Days of the year before each month.
const DAYS_BEFORE: [u16; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

/// A time of a day, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl DateTime {
    /// A date and a time; `None` if there is no such day or time.
    pub fn new([year, month, day]: [u16; 3], [hour, minute, second]: [u8; 3]) -> Option<Self> {
        let leap = is_leap(year) && month == 2;
        let days = match month {
            2 => 28 + u16::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        let is_valid = (1..=9999).contains(&year)
            && (1..=days).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        let (month, day) = (month as u8, day as u8);
        is_valid.then_some(Self { year, month, day, hour, minute, second })
    }

    /// The start of 2026, where nobody knows the time.
    pub(super) const UNKNOWN: Self =
        Self { year: 2026, month: 1, day: 1, hour: 0, minute: 0, second: 0 };

    /// The day of the year, from 1.
    fn ordinal(self) -> u16 {
        let leap_day = u16::from(is_leap(self.year) && self.month > 2);
        DAYS_BEFORE[usize::from(self.month) - 1] + u16::from(self.day) + leap_day
    }

    /// The day of the week, from Sunday.
    fn weekday(self) -> usize {
        let years = usize::from(self.year) - 1;
        (365 * years + years / 4 - years / 100 + years / 400 + usize::from(self.ordinal())) % 7
    }

    /// Writes the time in a format.
    pub(super) fn format(self, format: &str) -> Result<String, Error> {
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            match c {
                '%' => self.write(rest.next(), &mut out)?,
                c => out.push(c),
            }
        }
        Ok(out)
    }

    /// Appends what a letter behind a percent sign stands for.
    fn write(self, letter: Option<char>, out: &mut String) -> Result<(), Error> {
        let Self { year, month, day, hour, minute, second } = self;
        let hour_12 = (hour + 11) % 12 + 1;
        let (month_name, day_name) = (MONTHS[usize::from(month) - 1], DAYS[self.weekday()]);
        // Nothing fails that is written to a string.
        let _ = match letter {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:02}", year % 100),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{day:02}"),
            Some('e') => write!(out, "{day:2}"),
            Some('B') => out.write_str(month_name),
            Some('b' | 'h') => out.write_str(&month_name[..3]),
            Some('A') => out.write_str(day_name),
            Some('a') => out.write_str(&day_name[..3]),
            Some('j') => write!(out, "{:03}", self.ordinal()),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{hour_12:02}"),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('p') => out.write_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T' | 'X') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('D' | 'x') => write!(out, "{month:02}/{day:02}/{:02}", year % 100),
            Some('Z') => out.write_str("UTC"),
            Some('z') => out.write_str("+0000"),
            Some('%') => out.write_char('%'),
            other => {
                let letter = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now does not know %{letter}"),
                ));
            }
        };
        Ok(())
    }
}

fn is_leap(year: u16) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_in_c() {
        let all = "%Y %y %m %d %e %B %b %h %A %a %j %H %I %M %S %p %F %T %X %D %x %Z %z %%";
        let cases = [
            (
                [2026, 11, 4],
                [12, 34, 56],
                "2026 26 11 04  4 November Nov Nov Wednesday Wed 308 12 12 34 56 PM 2026-11-04 \
                 12:34:56 12:34:56 11/04/26 11/04/26 UTC +0000 %",
            ),
            (
                [2000, 12, 31],
                [0, 0, 9],
                "2000 00 12 31 31 December Dec Dec Sunday Sun 366 00 12 00 09 AM 2000-12-31 \
                 00:00:09 00:00:09 12/31/00 12/31/00 UTC +0000 %",
            ),
        ];
        for (date, time, expected) in cases {
            assert_eq!(DateTime::new(date, time).unwrap().format(all).unwrap(), expected);
        }
        let day = |date| DateTime::new(date, [13, 0, 0]).unwrap().format("%A %j %I").unwrap();
        assert_eq!(day([2024, 2, 29]), "Thursday 060 01");
        assert_eq!(day([1900, 3, 1]), "Thursday 060 01");
        assert_eq!(day([1, 1, 1]), "Monday 001 01");
    }

    #[test]
    fn days_that_do_not_exist_are_refused() {
        for date in [[2026, 2, 29], [1900, 2, 29], [2026, 4, 31], [2026, 13, 1], [0, 1, 1]] {
            assert_eq!(DateTime::new(date, [0; 3]), None, "{date:?}");
        }
        for time in [[24, 0, 0], [0, 60, 0], [0, 0, 60]] {
            assert_eq!(DateTime::new([2026, 1, 1], time), None, "{time:?}");
        }
        let error = DateTime::UNKNOWN.format("%Q").unwrap_err().to_string();
        assert!(error.contains("%Q"), "{error}");
    }
}
