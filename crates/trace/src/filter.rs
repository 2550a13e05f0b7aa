//! Which lines of a trace are wanted.

use crate::schema::Line;

/// What a line has to be. Everything that is not said is wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// About one of these devices.
    pub devices: Vec<String>,
    /// A call on one of these: what the file is (`iommufd`, `device`, ...), or its number.
    pub objects: Vec<String>,
    /// A call that failed with one of these; `any` for every failed call.
    pub errnos: Vec<String>,
    /// Of one of these kinds.
    pub kinds: Vec<String>,
    /// At this time or later, in nanoseconds since the trace began.
    pub since: Option<u64>,
    /// At this time or earlier.
    pub until: Option<u64>,
}

impl Filter {
    /// Whether `line` is wanted.
    pub fn wants(&self, line: &Line) -> bool {
        let time = line.time();
        self.since.is_none_or(|since| time >= since)
            && self.until.is_none_or(|until| time <= until)
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == line.kind()))
            && (self.devices.is_empty() || self.is_about_device(line))
            && (self.objects.is_empty() || self.is_on_object(line))
            && (self.errnos.is_empty() || self.has_failed(line))
    }

    fn is_about_device(&self, line: &Line) -> bool {
        let name = line.device().map(ToString::to_string);
        name.is_some_and(|name| self.devices.contains(&name))
    }

    fn is_on_object(&self, line: &Line) -> bool {
        let Line::Call(call) = line else { return false };
        let object = call.object.map(|object| object.name());
        let number = call.file.map(|file| file.to_string());
        self.objects
            .iter()
            .any(|wanted| Some(wanted.as_str()) == object || Some(wanted) == number.as_ref())
    }

    fn has_failed(&self, line: &Line) -> bool {
        let Line::Call(call) = line else { return false };
        call.errno.as_ref().is_some_and(|errno| {
            let named = |wanted: &String| wanted == "any" || wanted.eq_ignore_ascii_case(errno);
            self.errnos.iter().any(named)
        })
    }
}
