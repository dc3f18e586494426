//! Systems on a chip that have an HTP: name, QNN's number, HTP generation.

use dlx_ir::Error;

/// A row of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Soc {
    /// Its name.
    pub name: &'static str,
    /// What QNN's option `soc_model` calls it.
    pub model: u32,
    /// Its HTP generation, QNN's option `htp_arch`.
    pub arch: u32,
}

/// Every SoC that is known.
pub const SOCS: &[Soc] = &[
    Soc { name: "SM8350", model: 30, arch: 68 },
    Soc { name: "SM8450", model: 36, arch: 69 },
    Soc { name: "SM8550", model: 43, arch: 73 },
    Soc { name: "SM8650", model: 57, arch: 75 },
    Soc { name: "SC8380XP", model: 60, arch: 73 },
    Soc { name: "SM8750", model: 69, arch: 79 },
    Soc { name: "SM8850", model: 87, arch: 81 },
];

/// The SoC of that name or number, if its HTP is not older than `least`.
///
/// # Errors
/// It is not known, or too old.
pub fn soc(name: &str, least: u32) -> Result<Soc, Error> {
    let is = |s: &&Soc| s.name.eq_ignore_ascii_case(name) || s.model.to_string() == name;
    let shown = |s: &Soc| format!("{} ({}, v{})", s.name, s.model, s.arch);
    let fit: Vec<String> = SOCS.iter().filter(|s| s.arch >= least).map(shown).collect();
    let help = format!("use one of {}", fit.join(", "));
    let Some(soc) = SOCS.iter().find(is) else {
        return Err(Error::new("--soc", format!("`{name}` is not known")).help(help));
    };
    if soc.arch < least {
        let message = format!("{} has HTP v{}, and this profile needs v{least}", soc.name, soc.arch);
        return Err(Error::new("--soc", message).help(help));
    }
    Ok(*soc)
}
