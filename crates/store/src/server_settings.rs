//! What an operator told the running server and a restart must not forget.

use trainyard_core::Result;

use crate::{db::Sql, store::Store, writer::Lane};

/// Whether the server starts nothing new: present and `true`, or not.
const DRAINED: &str = "drained";

impl Store {
    /// Whether the server is drained: it starts nothing new.
    pub async fn is_drained(&self) -> Result<bool> {
        let sql = Sql::new("select value from server_settings where name = $1").bind(DRAINED);
        let row = self.reader().await?.fetch_optional(sql).await?;
        row.map(|row| row.columns().text()).transpose().map(|value| value.as_deref() == Some("true"))
    }

    /// Drains the server, or ends that.
    pub async fn set_drained(&self, drained: Drained) -> Result<()> {
        let sql = set(drained);
        self.writer().write(Lane::Shared, move |conn| Box::pin(conn.execute(sql))).await.map(|_| ())
    }
}

/// The statement that drains the server, or ends that.
pub(crate) fn set(drained: Drained) -> Sql {
    let text = "insert into server_settings (name, value) values ($1, $2) on conflict (name) do update set value = excluded.value";
    Sql::new(text).bind(DRAINED).bind(if drained == Drained::Yes { "true" } else { "false" })
}

/// Whether the server starts new work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// It does not.
    Yes,
    /// It does.
    No,
}
