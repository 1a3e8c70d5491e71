//! Lists for people: columns without rules.

use crate::tame::is_tame;

/// Spaces between columns.
const GAP: usize = 3;

/// Prints rows below their headings.
pub(crate) fn print<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    crate::say::text(&format(headings.map(str::to_owned), rows));
}

fn format<const N: usize>(headings: [String; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    // Names come from archives and arguments; characters that a terminal would act on are left out.
    let tame = |cell: String| cell.chars().filter(|c| is_tame(*c)).collect::<String>();
    let rows: Vec<_> = std::iter::once(headings).chain(rows).map(|row| row.map(tame)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + GAP;
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

/// Seconds since 1970 as `YYYY-MM-DD HH:MM:SS`, UTC.
pub(crate) fn timestamp(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Seconds since 1970 in the form of RFC 3339, for programs.
pub(crate) fn rfc3339(seconds: u64) -> String {
    from_record(&timestamp(seconds))
}

/// Milliseconds since 1970 in the form of RFC 3339.
pub(crate) fn rfc3339_ms(milliseconds: u64) -> String {
    let seconds = timestamp(milliseconds / 1000).replace(' ', "T");
    format!("{seconds}.{:03}Z", milliseconds % 1000)
}

/// The time in a record, `YYYY-MM-DD HH:MM:SS` in UTC, in the form of RFC 3339.
pub(crate) fn from_record(time: &str) -> String {
    format!("{}Z", time.replace(' ', "T"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest() {
        let rows = [["a", "1"], ["long name", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(format(["NAME".into(), "N".into()], rows), "NAME        N\na           1\nlong name\n");
    }

    #[test]
    fn control_characters_are_left_out() {
        assert_eq!(format(["N".into()], [["a\u{1b}]0;x\u{7}b\n\u{202e}\u{9b}".into()]]), "N\na]0;xb\n");
    }

    #[test]
    fn timestamps() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_799, "2000-02-29 23:59:59"),
            (1_709_164_800, "2024-02-29 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (1_795_322_359, "2026-11-22 04:39:19"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
        assert_eq!(rfc3339_ms(951_868_799_007), "2000-02-29T23:59:59.007Z");
        assert_eq!(rfc3339(951_868_799), "2000-02-29T23:59:59Z");
        for text in [rfc3339_ms(u64::MAX), rfc3339(951_868_799), from_record("2026-01-02 03:04:05")] {
            assert!(text.parse::<jiff::Timestamp>().is_ok(), "{text}");
        }
    }
}
