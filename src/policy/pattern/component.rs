//! What a pattern says about one component of a path.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::error::PatternError;
use super::token::{Token, rest_after, tokens_match};

/// What a pattern says about one component of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Component {
    /// `**`: any number of components, none included.
    AnyDepth,
    /// Exactly one component.
    Name(NamePattern),
}

/// What a pattern says about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern(Form);

/// The two commonest forms apart from the general one: `settle` asks for tens of thousands of paths.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Literal(Vec<u8>),
    /// `*`, and then no other one.
    Suffix(Vec<Token>),
    Wild(Vec<Token>),
}

impl Component {
    pub(super) fn parse(part: &[u8]) -> Result<Component, PatternError> {
        match part {
            b"**" => Ok(Component::AnyDepth),
            b"." | b".." => Err(PatternError::Dots),
            _ => Ok(Component::Name(NamePattern::parse(part)?)),
        }
    }

    /// Whether this is `**`.
    pub(crate) fn is_any_depth(&self) -> bool {
        *self == Component::AnyDepth
    }

    /// The one name this component matches, if it has no wildcard.
    pub fn literal(&self) -> Option<&OsStr> {
        match self {
            Component::Name(NamePattern(Form::Literal(name))) => Some(OsStr::from_bytes(name)),
            _ => None,
        }
    }
}

impl NamePattern {
    /// The pattern that matches this name alone.
    pub(super) fn of_name(name: &[u8]) -> NamePattern {
        NamePattern(Form::Literal(name.to_vec()))
    }

    fn parse(part: &[u8]) -> Result<NamePattern, PatternError> {
        if part.windows(2).any(|pair| pair == b"**") {
            return Err(PatternError::PartialAnyDepth);
        }
        let mut tokens = Vec::new();
        let mut rest = part;
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            tokens.push(match byte {
                b'*' => Token::Star,
                b'?' => Token::AnyByte,
                b'{' => return Err(PatternError::Braces),
                b'[' => {
                    let (set, tail) = Token::parse_set(rest)?;
                    rest = tail;
                    set
                }
                _ => Token::Byte(byte),
            });
        }
        if let Some(literal) = tokens.iter().map(Token::literal).collect() {
            return Ok(NamePattern(Form::Literal(literal)));
        }
        Ok(NamePattern(match tokens.split_first() {
            Some((Token::Star, tail)) if !tail.contains(&Token::Star) => Form::Suffix(tail.to_vec()),
            _ => Form::Wild(tokens),
        }))
    }

    /// Whether `name`, one component of a path, matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        match &self.0 {
            Form::Literal(literal) => name == literal,
            Form::Suffix(suffix) => name.len().checked_sub(suffix.len()).is_some_and(|start| {
                suffix.iter().zip(&name[start..]).all(|(token, byte)| token.matches(*byte))
            }),
            Form::Wild(tokens) => tokens_match(tokens, name),
        }
    }
}

/// Whether the components match exactly these names.
pub(super) fn matches_all(components: &[Component], names: &[&[u8]]) -> bool {
    components_after(components, names).is_some_and(|rest| rest.iter().all(Component::is_any_depth))
}

pub(super) fn components_after<'p>(components: &'p [Component], names: &[&[u8]]) -> Option<&'p [Component]> {
    rest_after(components, names, Component::is_any_depth, |component, name| match component {
        Component::AnyDepth => true,
        Component::Name(pattern) => pattern.matches(name),
    })
}
