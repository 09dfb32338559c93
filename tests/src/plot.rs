//! Curves over the number of nodes, as SVG: both axes logarithmic, a colour and a mark per
//! curve, every value written at its mark.

use std::fmt::Write as _;

/// Pixels: the whole, and the area of the curves within it.
const SIZE: (f64, f64) = (640.0, 400.0);
const AREA: [f64; 4] = [80.0, 50.0, 470.0, 340.0];
const COLOURS: [&str; 5] = ["#0b66c3", "#c3510b", "#2b8a3e", "#7b3fa0", "#666666"];

/// One curve: its name, and (nodes, value).
#[derive(Debug)]
pub struct Curve {
    /// As the legend names it.
    pub name: &'static str,
    /// Nodes, and the value at so many.
    pub points: Vec<(f64, f64)>,
}

/// One picture.
#[derive(Debug)]
pub struct Plot {
    /// Above the picture.
    pub title: &'static str,
    /// What is shown and its unit.
    pub value: &'static str,
    /// One or more, of different names.
    pub curves: Vec<Curve>,
    /// A line that must not be crossed, and what it is called.
    pub limit: Option<(f64, &'static str)>,
}

/// Three digits, without an exponent.
pub fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 10_000.0 => format!("{:.0}k", v / 1e3),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

impl Plot {
    /// The whole decades that hold all values.
    fn decades(values: impl Iterator<Item = f64> + Clone) -> (i32, i32) {
        let (low, high) = (values.clone().fold(f64::MAX, f64::min), values.fold(0.0, f64::max));
        #[allow(clippy::cast_possible_truncation, reason = "a logarithm")]
        let decade = |v: f64| v.max(1e-9).log10() as i32;
        let low = if low < 1.0 { decade(low) - 1 } else { decade(low) };
        (low, (decade(high) + 1).max(low + 1))
    }

    /// The picture.
    pub fn svg(&self) -> String {
        let points = || self.curves.iter().flat_map(|c| c.points.iter().copied());
        let limit = self.limit.map(|(value, _)| value);
        let (left, right) = Self::decades(points().map(|p| p.0));
        let (bottom, top) = Self::decades(points().map(|p| p.1.max(1e-3)).chain(limit));
        let place = |value: f64, from: i32, to: i32| {
            (value.max(1e-9).log10() - f64::from(from)) / f64::from(to - from)
        };
        let x = |v: f64| AREA[0] + place(v, left, right) * (AREA[2] - AREA[0]);
        let y = |v: f64| AREA[3] - place(v, bottom, top) * (AREA[3] - AREA[1]);
        let (width, height) = SIZE;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"20\" y=\"26\" font-size=\"16\">{}</text>\n\
             <text x=\"20\" y=\"{}\" transform=\"rotate(-90 20 {})\">{}</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">nodes</text>\n",
            self.title,
            AREA[3] - 40.0,
            AREA[3] - 40.0,
            self.value,
            f64::midpoint(AREA[0], AREA[2]),
            AREA[3] + 40.0,
        );
        for decade in left..=right {
            let v = 10f64.powi(decade);
            let _ = writeln!(
                out,
                "<path d=\"M{0:.1} {1}V{2}\" stroke=\"#ddd\"/>\
                 <text x=\"{0:.1}\" y=\"{3}\" text-anchor=\"middle\">{4}</text>",
                x(v),
                AREA[1],
                AREA[3],
                AREA[3] + 18.0,
                short_power(decade),
            );
        }
        for decade in bottom..=top {
            let v = 10f64.powi(decade);
            let _ = writeln!(
                out,
                "<path d=\"M{0} {1:.1}H{2}\" stroke=\"#ddd\"/>\
                 <text x=\"{3}\" y=\"{4:.1}\" text-anchor=\"end\">{5}</text>",
                AREA[0],
                y(v),
                AREA[2],
                AREA[0] - 8.0,
                y(v) + 4.0,
                short_power(decade),
            );
        }
        if let Some((value, name)) = self.limit {
            let _ = writeln!(
                out,
                "<path d=\"M{0} {1:.1}H{2}\" stroke=\"#b00020\" stroke-dasharray=\"6 4\"/>\
                 <text x=\"{3}\" y=\"{4:.1}\" fill=\"#b00020\">{name}</text>",
                AREA[0],
                y(value),
                AREA[2],
                AREA[2] + 10.0,
                y(value) + 4.0,
            );
        }
        for (number, curve) in self.curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let line: Vec<_> =
                curve.points.iter().map(|(n, v)| format!("{:.1},{:.1}", x(*n), y(*v))).collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                line.join(" "),
            );
            for (n, v) in &curve.points {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{0:.1}\" cy=\"{1:.1}\" r=\"4\" fill=\"{colour}\"/>\
                     <text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\" fill=\"{colour}\">{3}</text>",
                    x(*n),
                    y(*v),
                    y(*v) - 8.0,
                    short(*v),
                );
            }
            let row = AREA[1] + 20.0 + 20.0 * f64::from(u32::try_from(number).unwrap_or(0));
            let _ = writeln!(
                out,
                "<path d=\"M{0} {1}h16\" stroke=\"{colour}\" stroke-width=\"3\"/>\
                 <text x=\"{2}\" y=\"{3}\">{4}</text>",
                AREA[2] + 12.0,
                row,
                AREA[2] + 34.0,
                row + 4.0,
                curve.name,
            );
        }
        out.push_str("</svg>\n");
        out
    }
}

fn short_power(decade: i32) -> String {
    match decade {
        0.. => short(10f64.powi(decade)).replace(".00", "").replace(".0", ""),
        _ => format!("{}", 10f64.powi(decade)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_inside_the_picture() {
        let curves = vec![Curve { name: "a", points: vec![(10.0, 0.4), (5000.0, 1900.0)] }];
        let plot = Plot { title: "t", value: "v (s)", curves, limit: Some((2000.0, "limit")) };
        let svg = plot.svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        for mark in svg.split("<circle ").skip(1) {
            let number = |name: &str| -> f64 {
                let rest = mark.split_once(&format!("{name}=\"")).unwrap().1;
                rest.split_once('"').unwrap().0.parse().unwrap()
            };
            assert!((AREA[0]..=AREA[2]).contains(&number("cx")), "{mark}");
            assert!((AREA[1]..=AREA[3]).contains(&number("cy")), "{mark}");
        }
        assert!(svg.contains(">0.40<") && svg.contains(">1900<") && svg.contains(">limit<"));
        assert_eq!([0, 3, 6].map(short_power), ["1", "1000", "1M"]);
    }
}
