//! Roles and what they allow: one table, used by the service, by tests and by the documentation.

use std::{fmt, str::FromStr};

use saas_core::{InvalidInput, RoleName};
use serde::Serialize;

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// What a person is in one tenant, from the least to the most.
    Role {
        /// Looks.
        Viewer = "viewer",
        /// Works.
        Member = "member",
        /// Pays.
        Billing = "billing",
        /// Runs the tenant.
        Admin = "admin",
        /// Answers for it. There is always at least one.
        Owner = "owner",
    }
}

names! {
    /// What can be allowed.
    Permission {
        /// See the application's data.
        ReadData = "read data",
        /// Change the application's data.
        WriteData = "write data",
        /// See who is in the tenant.
        ReadMembers = "read members",
        /// Add, change and remove members.
        ManageMembers = "manage members",
        /// See plan, invoices and usage.
        ReadBilling = "read billing",
        /// Buy, change and cancel.
        ManageBilling = "manage billing",
        /// See the audit log.
        ReadAudit = "read the audit log",
        /// Create and revoke API keys.
        ManageApiKeys = "manage API keys",
        /// Rename and configure the tenant.
        ManageTenant = "manage the tenant",
        /// Take everything the tenant has, as files.
        ExportData = "export all data",
        /// Delete the tenant.
        DeleteTenant = "delete the tenant",
    }
}

use Permission::{
    DeleteTenant, ExportData, ManageApiKeys, ManageBilling, ManageMembers, ManageTenant, ReadAudit, ReadBilling,
    ReadData, ReadMembers, WriteData,
};

/// Who may do what. Deny by default: what is not here is not allowed.
pub const MATRIX: &[(Role, &[Permission])] = &[
    (Role::Viewer, &[ReadData, ReadMembers]),
    (Role::Member, &[ReadData, WriteData, ReadMembers]),
    (Role::Billing, &[ReadData, ReadMembers, ReadBilling, ManageBilling]),
    (
        Role::Admin,
        &[ReadData, WriteData, ReadMembers, ManageMembers, ReadBilling, ReadAudit, ManageApiKeys, ManageTenant],
    ),
    (
        Role::Owner,
        &[
            ReadData,
            WriteData,
            ReadMembers,
            ManageMembers,
            ReadBilling,
            ManageBilling,
            ReadAudit,
            ManageApiKeys,
            ManageTenant,
            ExportData,
            DeleteTenant,
        ],
    ),
];

impl Role {
    /// Whether the role has the permission.
    ///
    /// ```
    /// use saas_tenancy::{Permission, Role};
    ///
    /// assert!(Role::Admin.allows(Permission::ManageMembers));
    /// assert!(!Role::Admin.allows(Permission::DeleteTenant));
    /// ```
    #[must_use]
    pub fn allows(self, permission: Permission) -> bool {
        MATRIX.iter().any(|(role, allowed)| *role == self && allowed.contains(&permission))
    }

    /// Whether the role has every permission of `other`, and so may give it.
    #[must_use]
    pub fn includes(self, other: Self) -> bool {
        self.outranks_or_equals(other) && Permission::ALL.iter().all(|p| self.allows(*p) || !other.allows(*p))
    }

    /// Whether the role may change or remove a member with role `other`: nobody reaches above their own rank.
    #[must_use]
    pub fn outranks_or_equals(self, other: Self) -> bool {
        self >= other
    }

    /// The name, for a context.
    #[must_use]
    pub const fn name(self) -> RoleName {
        RoleName::from_static(self.as_str())
    }
}

impl FromStr for Role {
    type Err = InvalidInput;

    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        Self::ALL
            .iter()
            .copied()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| InvalidInput::new("role", "is unknown", "use one of viewer, member, billing, admin, owner"))
    }
}

/// The matrix as a Markdown table, for documentation.
#[must_use]
pub fn matrix_as_markdown() -> String {
    let mut table = String::from("| permission |");
    for role in Role::ALL {
        table += &format!(" {role} |");
    }
    table += "\n|---|";
    table += &"---|".repeat(Role::ALL.len());
    for permission in Permission::ALL {
        table += &format!("\n| {permission} |");
        for role in Role::ALL {
            table += if role.allows(*permission) { " yes |" } else { " |" };
        }
    }
    table.push('\n');
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_matrix_is_as_documented() {
        let documented = include_str!("../../docs/roles.md");
        assert!(documented.contains(&matrix_as_markdown()), "docs/roles.md should contain:\n{}", matrix_as_markdown());
    }

    #[test]
    fn every_role_stands_once_in_the_matrix() {
        let roles: Vec<Role> = MATRIX.iter().map(|(role, _)| *role).collect();
        assert_eq!(roles, Role::ALL);
        assert!(Permission::ALL.iter().all(|p| Role::Owner.allows(*p)), "the owner may do everything");
    }

    #[test]
    fn nobody_reaches_above_their_rank() {
        assert!(!Role::Admin.includes(Role::Billing), "an admin cannot manage billing, nor let others");
        assert!(Role::ALL.iter().all(|role| Role::Owner.includes(*role)));
        assert!(Role::Owner.outranks_or_equals(Role::Owner));
        assert!(!Role::Admin.outranks_or_equals(Role::Owner));
        assert!(!Role::Member.outranks_or_equals(Role::Admin));
    }
}
