//! Filters: which tasks a client asked to list, and where a page begins.
//! Invariant: a query is understood to its last parameter, or refused.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use federation::JobId;

use super::mistake::quote;
use super::model::State;
use super::view::View;

/// `page_size` must be less than 2,048.
const PAGE_SIZE_MAX: usize = 2_047;
const PAGE_SIZE_DEFAULT: usize = 256;
/// As many as a task has tags.
const TAG_KEYS_MAX: usize = 64;
/// Says what follows in a page token, so that a later release can put something else there.
const TOKEN_FORMAT: &str = "1:";

/// Why a query is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// A `%` without two hexadecimal digits, or bytes that are no UTF-8.
    #[error("the query is not percent-encoded UTF-8; encode it")]
    Encoding,
    /// No such parameter.
    #[error("{0:?} is no parameter here; remove it")]
    Unknown(String),
    /// Twice, where one counts.
    #[error("{0} is given twice; give it once")]
    Twice(&'static str),
    /// Too many tags to filter by.
    #[error("at most {TAG_KEYS_MAX} tag_key are allowed, and no more tag_value than tag_key")]
    Tags,
    /// Not a view.
    #[error("{0:?} is no view; write MINIMAL, BASIC or FULL")]
    View(String),
    /// Not a state.
    #[error("{0:?} is no state; write one of TES 1.1, such as RUNNING")]
    State(String),
    /// Not a page size.
    #[error("{0:?} is no page_size; give a whole number from 1 to {PAGE_SIZE_MAX}")]
    PageSize(String),
    /// Not a token of ours.
    #[error("this is no page_token; send the next_page_token of the page before, unchanged")]
    PageToken,
}

/// Where the next page begins: after (that is, older than) this task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken(pub JobId);

impl PageToken {
    /// As clients carry it around.
    pub fn to_text(self) -> String {
        BASE64.encode(format!("{TOKEN_FORMAT}{}", self.0))
    }

    /// Reads what [`PageToken::to_text`] wrote.
    pub fn parse(text: &str) -> Result<PageToken, BadQuery> {
        let bytes = BASE64.decode(text).map_err(|_| BadQuery::PageToken)?;
        let id = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|it| it.strip_prefix(TOKEN_FORMAT))
            .and_then(|id| JobId::parse(id).ok());
        id.map(PageToken).ok_or(BadQuery::PageToken)
    }
}

/// The query of `GET /tasks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// Tasks whose name begins like this.
    pub name_prefix: Option<String>,
    /// Tasks in this state.
    pub state: Option<State>,
    /// Tasks that have all these tags; `None` as value: any value.
    pub tags: Vec<(String, Option<String>)>,
    /// Most tasks on a page, 1 to 2,047.
    pub page_size: usize,
    /// Where the page begins; `None`: at the newest.
    pub page_token: Option<PageToken>,
    /// How much of each task.
    pub view: View,
}

impl ListQuery {
    /// Reads the part of a URL after `?`. An empty value counts as absent, except of tags.
    pub fn parse(query: Option<&str>) -> Result<ListQuery, BadQuery> {
        let mut query = Query::parse(query.unwrap_or_default())?;
        let list = ListQuery {
            name_prefix: query.one("name_prefix")?,
            state: match query.one("state")? {
                None => None,
                Some(text) => Some(State::parse(&text).ok_or_else(|| BadQuery::State(quote(&text)))?),
            },
            tags: query.tags()?,
            page_size: query.page_size()?,
            page_token: match query.one("page_token")? {
                None => None,
                Some(text) => Some(PageToken::parse(&text)?),
            },
            view: query.view()?,
        };
        query.finish()?;
        Ok(list)
    }

    /// Whether a task of this name and these tags, in this state, is asked for.
    pub fn matches(&self, name: Option<&str>, tags: &BTreeMap<String, String>, state: State) -> bool {
        let prefix = self.name_prefix.as_deref().unwrap_or_default();
        let tagged = |(key, wanted): &(String, Option<String>)| {
            let value = tags.get(key);
            value.is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value))
        };
        let state = self.state.is_none_or(|wanted| wanted == state);
        state && name.unwrap_or_default().starts_with(prefix) && self.tags.iter().all(tagged)
    }
}

/// A query's parameters, taken one by one; what is left at the end is unknown.
pub(super) struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    pub(super) fn parse(text: &str) -> Result<Query, BadQuery> {
        let mut parameters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let values = parameters.entry(decode(name)?).or_default();
            values.push(decode(value)?);
        }
        Ok(Query(parameters))
    }

    pub(super) fn view(&mut self) -> Result<View, BadQuery> {
        match self.one("view")? {
            None => Ok(View::default()),
            Some(text) => View::parse(&text).ok_or_else(|| BadQuery::View(quote(&text))),
        }
    }

    pub(super) fn finish(self) -> Result<(), BadQuery> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(BadQuery::Unknown(quote(&name))),
        }
    }

    fn one(&mut self, name: &'static str) -> Result<Option<String>, BadQuery> {
        let mut values = self.0.remove(name).unwrap_or_default();
        match (values.pop(), values.is_empty()) {
            (_, false) => Err(BadQuery::Twice(name)),
            (value, true) => Ok(value.filter(|it| !it.is_empty())),
        }
    }

    /// Keys and values belong together by position; a missing or empty value matches any.
    fn tags(&mut self) -> Result<Vec<(String, Option<String>)>, BadQuery> {
        let keys = self.0.remove("tag_key").unwrap_or_default();
        let values = self.0.remove("tag_value").unwrap_or_default();
        if keys.len() > TAG_KEYS_MAX || values.len() > keys.len() {
            return Err(BadQuery::Tags);
        }
        let mut values = values.into_iter();
        let pair = |key| (key, values.next().filter(|it| !it.is_empty()));
        Ok(keys.into_iter().map(pair).collect())
    }

    fn page_size(&mut self) -> Result<usize, BadQuery> {
        let Some(text) = self.one("page_size")? else {
            return Ok(PAGE_SIZE_DEFAULT);
        };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(size) if digits && (1..=PAGE_SIZE_MAX).contains(&size) => Ok(size),
            _ => Err(BadQuery::PageSize(quote(&text))),
        }
    }
}

/// `application/x-www-form-urlencoded`, without its leniency.
fn decode(text: &str) -> Result<String, BadQuery> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || {
                    let digit = char::from(rest.next()?).to_digit(16)?;
                    u8::try_from(digit).ok()
                };
                match (digit(), digit()) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(BadQuery::Encoding),
                }
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).map_err(|_| BadQuery::Encoding)
}
