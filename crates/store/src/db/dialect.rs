//! Every difference between the two databases that a statement can show.

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// For the schema: text that compares and sorts bytewise, so that keyset pages and prefix ranges mean the same everywhere.
    pub(crate) fn text_type(self) -> &'static str {
        match self {
            Self::Sqlite => "text",
            Self::Postgres => "text collate \"C\"",
        }
    }

    /// For the schema: tables of small rows that are only found by their key need no second tree in SQLite.
    pub(crate) fn without_rowid(self) -> &'static str {
        match self {
            Self::Sqlite => " without rowid",
            Self::Postgres => "",
        }
    }

    /// How a write transaction begins. SQLite must take the write lock at once: a transaction that reads first and writes
    /// later fails without waiting when somebody else wrote in between.
    pub(crate) fn begin_write(self) -> &'static str {
        match self {
            Self::Sqlite => "begin immediate",
            Self::Postgres => "begin",
        }
    }

    /// Ends a `select` whose row `r` is written back later in the same transaction. SQLite has the write lock already.
    pub(crate) fn for_update(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => " for update of r",
        }
    }

    /// `{0}key{1}`: the text value of one key of the JSON map in `column`; the key is bound in between, so that it may hold
    /// anything.
    pub(crate) fn map_value(self, column: MapColumn) -> (&'static str, &'static str) {
        match (self, column) {
            (Self::Sqlite, MapColumn::Tags) => ("(select j.value from json_each(r.tags) j where j.key = ", ")"),
            (Self::Sqlite, MapColumn::Properties) => ("(select j.value from json_each(r.properties) j where j.key = ", ")"),
            (Self::Postgres, MapColumn::Tags) => ("(r.tags::jsonb ->> ", ")"),
            (Self::Postgres, MapColumn::Properties) => ("(r.properties::jsonb ->> ", ")"),
        }
    }

    /// `{0}key{1}`: whether the JSON map in `column` has the key, whatever its value.
    pub(crate) fn map_has_key(self, column: MapColumn) -> (&'static str, &'static str) {
        match (self, column) {
            (Self::Sqlite, MapColumn::Tags) => ("exists (select 1 from json_each(r.tags) j where j.key = ", ")"),
            (Self::Sqlite, MapColumn::Properties) => ("exists (select 1 from json_each(r.properties) j where j.key = ", ")"),
            (Self::Postgres, MapColumn::Tags) => ("jsonb_exists(r.tags::jsonb, ", ")"),
            (Self::Postgres, MapColumn::Properties) => ("jsonb_exists(r.properties::jsonb, ", ")"),
        }
    }

    /// `createdBy.userObjectId` where it is a text.
    pub(crate) fn user_id(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "(case when json_type(r.created_by, '$.userObjectId') = 'text' then json_extract(r.created_by, '$.userObjectId') end)"
            }
            Self::Postgres => {
                "(case when jsonb_typeof(r.created_by::jsonb -> 'userObjectId') = 'string' then r.created_by::jsonb ->> 'userObjectId' end)"
            }
        }
    }

    /// `runTypeV2.orchestrator` where it is a text.
    pub(crate) fn orchestrator(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "(case when json_type(r.extra, '$.runTypeV2.orchestrator') = 'text' \
                 then json_extract(r.extra, '$.runTypeV2.orchestrator') end)"
            }
            Self::Postgres => {
                "(case when jsonb_typeof(r.extra::jsonb #> '{runTypeV2,orchestrator}') = 'string' \
                 then r.extra::jsonb #>> '{runTypeV2,orchestrator}' end)"
            }
        }
    }

    /// `{0}trait{1}`: whether `runTypeV2.traits` is a list that holds the text.
    pub(crate) fn has_trait(self) -> (&'static str, &'static str) {
        match self {
            Self::Sqlite => (
                "(coalesce(json_type(r.extra, '$.runTypeV2.traits'), '') = 'array' and exists \
                 (select 1 from json_each(r.extra, '$.runTypeV2.traits') j where j.type = 'text' and j.value = ",
                "))",
            ),
            Self::Postgres => (
                "(case when jsonb_typeof(r.extra::jsonb #> '{runTypeV2,traits}') = 'array' \
                 then jsonb_exists(r.extra::jsonb #> '{runTypeV2,traits}', ",
                ") else false end)",
            ),
        }
    }

    /// The function of a text and a part that gives the part's place, 0 when the text does not hold it.
    pub(crate) fn position(self) -> &'static str {
        match self {
            Self::Sqlite => "instr",
            Self::Postgres => "strpos",
        }
    }
}

/// A column of `runs r` with a JSON map of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapColumn {
    Tags,
    Properties,
}
