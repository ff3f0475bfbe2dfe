//! The fields of a staff contact as options, and their names in the API.

use clap::Args;
use serde_json::{Map, Value};

/// Fields that may be given to create and to edit. Values are judged by the server.
#[derive(Debug, Default, Args)]
pub(super) struct StaffFields {
    /// Activated, Not activated or Suspended.
    #[arg(long)]
    status: Option<String>,
    /// Administrator, Supervisor, Agent or any other text.
    #[arg(long)]
    role: Option<String>,
    /// Full, Department, Restricted or any other text; follows the role unless given.
    #[arg(long)]
    data_scope: Option<String>,
    /// The job title.
    #[arg(long)]
    job_title: Option<String>,
    /// An IANA time zone, for example Europe/Madrid.
    #[arg(long)]
    timezone: Option<String>,
    /// Where the portrait is.
    #[arg(long)]
    avatar_url: Option<String>,
    /// The name that others see.
    #[arg(long)]
    display_name: Option<String>,
    /// The field directchatEnquiry: any text of at most 255 characters.
    #[arg(long)]
    directchat_enquiry: Option<String>,
    /// The field directCallEnquiry: any text of at most 255 characters.
    #[arg(long)]
    direct_call_enquiry: Option<String>,
    /// The telephone number in E.164 form, for example +34911234567.
    #[arg(long)]
    phone: Option<String>,
    /// The extension, 100 to 999999; the lowest free one is assigned when a contact is created without.
    #[arg(long, value_name = "NUMBER")]
    extension_number: Option<u32>,
    /// The field twoFactorAuthentication: true or false, nothing else.
    #[arg(long, value_name = "true|false")]
    two_factor_authentication: Option<bool>,
    /// The field microsoftActiveDirectory: true or false, nothing else.
    #[arg(long, value_name = "true|false")]
    microsoft_active_directory: Option<bool>,
    /// The field directStaffEnquiry: true or false, nothing else.
    #[arg(long, value_name = "true|false")]
    direct_staff_enquiry: Option<bool>,
}

impl StaffFields {
    /// The given fields as a JSON object.
    pub(super) fn into_object(self) -> Map<String, Value> {
        let fields: [(&str, Option<Value>); 14] = [
            ("status", self.status.map(Value::from)),
            ("role", self.role.map(Value::from)),
            ("dataScope", self.data_scope.map(Value::from)),
            ("jobTitle", self.job_title.map(Value::from)),
            ("timezone", self.timezone.map(Value::from)),
            ("avatarUrl", self.avatar_url.map(Value::from)),
            ("displayName", self.display_name.map(Value::from)),
            ("directchatEnquiry", self.directchat_enquiry.map(Value::from)),
            ("directCallEnquiry", self.direct_call_enquiry.map(Value::from)),
            ("phone", self.phone.map(Value::from)),
            ("extensionNumber", self.extension_number.map(Value::from)),
            ("twoFactorAuthentication", self.two_factor_authentication.map(Value::from)),
            ("microsoftActiveDirectory", self.microsoft_active_directory.map(Value::from)),
            ("directStaffEnquiry", self.direct_staff_enquiry.map(Value::from)),
        ];
        let given = |(name, value): (&str, Option<Value>)| Some((name.to_owned(), value?));
        fields.into_iter().filter_map(given).collect()
    }
}

/// The API's name of a field that is given as `job-title` or as `jobTitle`.
pub(super) fn field_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for (index, word) in text.trim_start_matches("--").split('-').enumerate() {
        let mut letters = word.chars();
        match letters.next() {
            Some(first) if index > 0 => name.push(first.to_ascii_uppercase()),
            Some(first) => name.push(first),
            None => {}
        }
        name.push_str(letters.as_str());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::{StaffFields, field_name};

    #[test]
    fn only_given_fields_are_sent_and_names_are_those_of_the_api() {
        let fields = StaffFields { direct_staff_enquiry: Some(false), ..StaffFields::default() };

        assert_eq!(
            serde_json::Value::Object(fields.into_object()).to_string(),
            r#"{"directStaffEnquiry":false}"#
        );
        assert_eq!(field_name("job-title"), "jobTitle");
        assert_eq!(field_name("directchat-enquiry"), "directchatEnquiry");
        assert_eq!(field_name("jobTitle"), "jobTitle");
    }
}
