//! Aligned columns.
//!
//! Text is split at tabs into cells; the last cell of a line belongs to no column. A column is a run of lines
//! that all have a cell there, within the column to its left; it is as wide as its widest cell and the padding.

/// Collects lines, then aligns them.
#[derive(Debug)]
pub(crate) struct Table {
    min: usize,
    padding: usize,
    lines: Vec<Vec<String>>,
}

impl Table {
    /// Listings.
    pub(crate) fn list() -> Table {
        Table::new(0, 2)
    }

    /// Listings of secrets and configs.
    pub(crate) fn wide_list() -> Table {
        Table::new(0, 4)
    }

    /// Tasks below a summary.
    pub(crate) fn tasks() -> Table {
        Table::new(4, 4)
    }

    /// Summaries.
    pub(crate) fn summary() -> Table {
        Table::new(8, 8)
    }

    fn new(min: usize, padding: usize) -> Table {
        Table { min, padding, lines: Vec::new() }
    }

    /// Adds a line; tabs separate its cells.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) {
        self.lines.push(text.as_ref().split('\t').map(str::to_owned).collect());
    }

    /// Adds a key and its value.
    pub(crate) fn pair(&mut self, key: &str, value: impl std::fmt::Display) {
        self.line(format!("{key}\t: {value}"));
    }

    /// Adds a header: names, and a dash below each of their characters.
    pub(crate) fn header(&mut self, names: &[&str]) {
        self.line(names.join("\t"));
        self.line(names.iter().map(|name| "-".repeat(name.chars().count())).collect::<Vec<_>>().join("\t"));
    }

    /// The aligned text, every line ended.
    pub(crate) fn finish(self) -> String {
        let mut widths: Vec<Vec<usize>> = self.lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
        self.align(0, self.lines.len(), 0, &mut widths);
        let mut text = String::new();
        for (cells, widths) in self.lines.iter().zip(&widths) {
            for (at, cell) in cells.iter().enumerate() {
                text.push_str(cell);
                if let Some(width) = widths.get(at) {
                    text.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
                }
            }
            text.push('\n');
        }
        text
    }

    /// Sets the widths of all columns at a place, within the lines of the column to its left.
    fn align(&self, from: usize, to: usize, column: usize, widths: &mut [Vec<usize>]) {
        let mut start = from;
        while start < to {
            let has = |line: usize| self.lines[line].len() > column + 1;
            if !has(start) {
                start += 1;
                continue;
            }
            let end = (start..to).find(|line| !has(*line)).unwrap_or(to);
            let cells =
                self.lines[start..end].iter().map(|cells| cells[column].chars().count() + self.padding);
            let width = cells.max().unwrap_or(0).max(self.min);
            for line in &mut widths[start..end] {
                line[column] = width;
            }
            self.align(start, end, column + 1, widths);
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mut table: Table, lines: &[&str], expected: &str) {
        lines.iter().for_each(|line| table.line(line));
        assert_eq!(table.finish(), expected);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        check(Table::list(), &["a\tbb\tc", "aaa\tb\tcc"], "a    bb  c\naaa  b   cc\n");
        check(Table::wide_list(), &["é\tb", "aa\tb"], "é     b\naa    b\n");
    }

    #[test]
    fn a_line_without_a_cell_ends_the_column() {
        check(Table::list(), &["long cell\tx", "alone", "a\ty"], "long cell  x\nalone\na  y\n");
        check(Table::list(), &["a\tlong\tx", "a\tx", "a\tb\tx"], "a  long  x\na  x\na  b  x\n");
    }

    #[test]
    fn a_line_that_ends_in_a_tab_is_padded() {
        check(Table::summary(), &["Status\t", "ID\t: x"], "Status        \nID            : x\n");
        check(Table::new(8, 1), &["a\tb"], "a       b\n");
    }

    #[test]
    fn headers_have_a_dash_for_each_character() {
        let mut table = Table::list();
        table.header(&["ID", "Name"]);
        assert_eq!(table.finish(), "ID  Name\n--  ----\n");
    }
}
