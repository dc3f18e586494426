//! What the formats of strings look like, as regular expressions.
//!
//! Invariant: every text that an expression matches is valid by the RFC that the format names, also as validators read it; not
//! every valid text is matched (domain names of one label, for example).

/// A day that the calendar has: month and day, and the 29th of February in leap years.
macro_rules! date {
    () => {
        "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))\
         |([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][48]|[2468]0|[13579][26])00)-02-29)"
    };
}

macro_rules! time {
    () => {
        "(([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))"
    };
}

macro_rules! octet {
    () => {
        "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}

macro_rules! label {
    () => {
        "[a-z0-9]{1,20}(-[a-z0-9]{1,10}){0,2}"
    };
}

macro_rules! host {
    () => {
        concat!("(", label!(), "\\.){1,3}[a-z]{2,10}")
    };
}

/// The expression of a format.
pub(super) fn format(name: &str) -> Option<&'static str> {
    Some(match name {
        "date" => date!(),
        "time" => time!(),
        "date-time" => concat!(date!(), "T", time!()),
        "duration" => {
            "P([0-9]{1,4}W|[0-9]{1,4}D(T[0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?)?|[0-9]{1,4}Y([0-9]{1,4}M([0-9]{1,4}D)?)?\
             |T([0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?|[0-9]{1,4}M([0-9]{1,4}S)?|[0-9]{1,4}S))"
        }
        "email" => concat!("[a-z0-9_+-]{1,20}(\\.[a-z0-9_+-]{1,20}){0,2}@", host!()),
        "hostname" => host!(),
        "ipv4" => concat!("(", octet!(), "\\.){3}", octet!()),
        "ipv6" => {
            "[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}|([0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,2})?::([0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,2})?"
        }
        "uri" => concat!("https?://", host!(), "(/[A-Za-z0-9._~-]{1,40}){0,8}/?(\\?[A-Za-z0-9._~=&-]{1,80})?"),
        "uuid" => "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        _ => return None,
    })
}
