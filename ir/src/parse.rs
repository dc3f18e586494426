//! Parses the text format. Written types are trusted here and checked by the verifier, so ill-typed IR can be expressed.
//!
//! Grammar (`;` starts a comment; `*` repeats; quotes allow any character in a name):
//!
//! ```text
//! module  = "module" @name "{" (weight | state)* graph* "}"
//! weight  = "weight" @name ":" type [ "=" (op @name,* attrs | list | stored) ] origin
//! stored  = "stored" "{offset=N, bytes=N" [ ", shard=N" ] "}"
//! state   = "state" @name ":" type
//! graph   = "graph" @name "(" (%name ":" type [at N]),* ")" "->" "(" type,* ")" "{" node* "return" %name,* "}"
//! node    = [ %name,* "=" ] op operand,* attrs [ ":" (type [at N]),* ] origin
//! origin  = [ "from" quoted-text,* ]
//! type    = dtype "[" dim,* "]" [ "@" layout ]
//! attrs   = [ "{" (name [ "=" (text | list) ]),* "}" ]
//! list    = "[" number,* "]"
//! ```

use crate::arena::{StateId, ValueId, WeightId};
use crate::error::Error;
use crate::eval::Data;
use crate::lex::{Lexer, Token};
use crate::literal::MAX_LITERAL;
use crate::module::{Graph, Module, Node, Operand, State, Value, Weight, WeightDef};
use crate::op::{AttrList, Op};
use crate::origin::{MAX_ORIGIN, Origin};
use crate::types::{Dim, Type};
use std::collections::{HashMap, HashSet};

/// Parses a module.
///
/// # Errors
/// The line and column of the first token that does not fit, with what was expected.
pub fn parse(text: &str) -> Result<Module, Error> {
    let mut p =
        Parser { lex: Lexer::new(text), module: Module::default(), globals: HashMap::new(), graphs: HashSet::new() };
    p.module()?;
    Ok(p.module)
}

#[derive(Clone, Copy)]
enum Global {
    Weight(WeightId),
    State(StateId),
}

struct Parser<'t> {
    lex: Lexer<'t>,
    module: Module,
    globals: HashMap<String, Global>,
    graphs: HashSet<String>,
}

/// One graph's names while it is parsed.
#[derive(Default)]
struct Scope {
    graph: Graph,
    names: HashMap<String, ValueId>,
}

impl Parser<'_> {
    fn module(&mut self) -> Result<(), Error> {
        self.lex.keyword("module")?;
        self.module.name = self.lex.global("the module's name")?;
        self.lex.punct('{')?;
        loop {
            let word = self.lex.word("`weight`, `state`, `graph` or `}`");
            match word.as_deref() {
                Ok("weight") => self.weight()?,
                Ok("state") => self.state()?,
                Ok("graph") => self.graph()?,
                Ok(other) => return Err(self.lex.error(format!("`{other}` is not weight, state or graph"))),
                Err(_) if self.lex.eat('}') => break,
                Err(e) => return Err(e.clone()),
            }
        }
        match self.lex.peek() {
            Token::End => Ok(()),
            _ => Err(self.lex.error("text after the module's closing brace")),
        }
    }

    fn declare(&mut self, name: &str, at: usize, global: Global) -> Result<(), Error> {
        match self.globals.insert(name.to_owned(), global) {
            None => Ok(()),
            Some(_) => Err(self.lex.error_at(at, format!("@{name} is defined twice"))),
        }
    }

    fn weight(&mut self) -> Result<(), Error> {
        let name = self.lex.global("the weight's name")?;
        let name_at = self.lex.last();
        self.lex.punct(':')?;
        let ty = self.ty()?;
        let def = if self.lex.eat('=') { self.weight_def(&ty)? } else { WeightDef::Source };
        let origin = self.origin()?;
        let id = self.module.weights.push(Weight { name: name.clone(), ty, def, origin });
        self.declare(&name, name_at, Global::Weight(id))
    }

    fn weight_def(&mut self, ty: &Type) -> Result<WeightDef, Error> {
        if self.lex.peek() == &Token::Punct('[') {
            let words = self.lex.list("a number", MAX_LITERAL)?;
            return Data::parse(&words, ty.dtype).map(WeightDef::Literal).map_err(|e| self.lex.error(e));
        }
        let op = self.lex.word("an op, a list or `stored`")?;
        let op_at = self.lex.last();
        if op == "stored" {
            let attrs = self.attrs()?;
            let number = |key: &str| attrs.iter().find(|(k, _)| k == key).and_then(|(_, v)| v.parse().ok());
            let shard = number("shard").and_then(|rows| u32::try_from(rows).ok());
            return match (number("offset"), number("bytes"), attrs.len()) {
                (Some(offset), Some(bytes), n) if n == 2 + usize::from(shard.is_some()) => {
                    Ok(WeightDef::Stored { offset, bytes, shard })
                }
                _ => Err(self.lex.error_at(op_at, "`stored` takes {offset=N, bytes=N} and perhaps shard=N")),
            };
        }
        let mut inputs = Vec::new();
        while let Token::Global(_) = self.lex.peek() {
            let name = self.lex.global("a weight")?;
            match self.globals.get(&name) {
                Some(Global::Weight(w)) => inputs.push(*w),
                _ => return Err(self.lex.error(format!("@{name} is not an earlier weight"))),
            }
            if !self.lex.eat(',') {
                break;
            }
        }
        let attrs = self.attrs()?;
        let op = Op::parse(&op, &attrs).map_err(|e| self.lex.error_at(op_at, e))?;
        Ok(WeightDef::Expr(op, inputs))
    }

    fn state(&mut self) -> Result<(), Error> {
        let name = self.lex.global("the state's name")?;
        let name_at = self.lex.last();
        self.lex.punct(':')?;
        let ty = self.ty()?;
        let id = self.module.states.push(State { name: name.clone(), ty });
        self.declare(&name, name_at, Global::State(id))
    }

    fn graph(&mut self) -> Result<(), Error> {
        let mut scope = Scope::default();
        scope.graph.name = self.lex.global("the graph's name")?;
        if !self.graphs.insert(scope.graph.name.clone()) {
            return Err(self.lex.error(format!("graph @{} is defined twice", scope.graph.name)));
        }
        self.lex.punct('(')?;
        while !self.lex.eat(')') {
            let name = (self.lex.local("a parameter")?, self.lex.last());
            self.lex.punct(':')?;
            let (ty, slot) = self.ty_and_slot()?;
            let id = self.define(&mut scope, name, ty, slot)?;
            scope.graph.params.push(id);
            self.comma_or(')')?;
        }
        self.lex.arrow()?;
        self.lex.punct('(')?;
        let mut result_types = Vec::new();
        while !self.lex.eat(')') {
            result_types.push(self.ty()?);
            self.comma_or(')')?;
        }
        self.lex.punct('{')?;
        while self.node(&mut scope)? {}
        while let Token::Local(_) = self.lex.peek() {
            let value = self.value(&scope)?;
            scope.graph.results.push(value);
            if !self.lex.eat(',') {
                break;
            }
        }
        self.lex.punct('}')?;
        let types: Vec<_> = scope.graph.results.iter().map(|&r| scope.graph.values[r].ty.clone()).collect();
        if types != result_types {
            let [returned, declared] =
                [types, result_types].map(|t| t.iter().map(Type::to_string).collect::<Vec<_>>().join(", "));
            let message = format!("graph @{} returns ({returned}), but declares ({declared})", scope.graph.name);
            return Err(self.lex.error(message));
        }
        self.module.graphs.push(scope.graph);
        Ok(())
    }

    /// Parses one node; false at `return`.
    fn node(&mut self, scope: &mut Scope) -> Result<bool, Error> {
        let mut names = Vec::new();
        while let Token::Local(_) = self.lex.peek() {
            names.push((self.lex.local("a result")?, self.lex.last()));
            if !self.lex.eat(',') {
                self.lex.punct('=')?;
                break;
            }
        }
        let name = self.lex.word("an op or `return`")?;
        let op_at = self.lex.last();
        if name == "return" && names.is_empty() {
            return Ok(false);
        }
        let mut inputs = Vec::new();
        while matches!(self.lex.peek(), Token::Local(_) | Token::Global(_)) {
            inputs.push(self.operand(scope)?);
            if !self.lex.eat(',') {
                break;
            }
        }
        let attrs = self.attrs()?;
        let op = Op::parse(&name, &attrs).map_err(|e| self.lex.error_at(op_at, e))?;
        let mut outputs = Vec::with_capacity(names.len());
        for (i, name) in names.into_iter().enumerate() {
            self.lex.punct(if i == 0 { ':' } else { ',' })?;
            let (ty, slot) = self.ty_and_slot()?;
            outputs.push(self.define(scope, name, ty, slot)?);
        }
        let origin = self.origin()?;
        scope.graph.nodes.push(Node { op, inputs, outputs, origin });
        Ok(true)
    }

    fn origin(&mut self) -> Result<Origin, Error> {
        if self.lex.peek() != &Token::Word("from") {
            return Ok(Origin::default());
        }
        self.lex.keyword("from")?;
        let mut names = vec![self.lex.text("a quoted name")?];
        while self.lex.eat(',') {
            if names.len() == MAX_ORIGIN {
                return Err(self.lex.error(format!("an origin has at most {MAX_ORIGIN} names")));
            }
            names.push(self.lex.text("a quoted name")?);
        }
        Ok(Origin::new(names))
    }

    /// Adds a value whose name stands at an offset of the text.
    fn define(
        &mut self,
        scope: &mut Scope,
        (name, at): (String, usize),
        ty: Type,
        slot: Option<u64>,
    ) -> Result<ValueId, Error> {
        let id = scope.graph.values.push(Value { name: name.clone(), ty, slot });
        match scope.names.insert(name, id) {
            None => Ok(id),
            Some(_) => Err(self.lex.error_at(at, format!("%{} is defined twice", scope.graph.values[id].name))),
        }
    }

    fn value(&mut self, scope: &Scope) -> Result<ValueId, Error> {
        let name = self.lex.local("a value")?;
        let id = scope.names.get(&name).copied();
        id.ok_or_else(|| self.lex.error(format!("%{name} is not defined before this use")))
    }

    fn operand(&mut self, scope: &Scope) -> Result<Operand, Error> {
        if let Token::Local(_) = self.lex.peek() {
            return self.value(scope).map(Operand::Value);
        }
        let name = self.lex.global("an operand")?;
        match self.globals.get(&name) {
            Some(Global::Weight(w)) => Ok(Operand::Weight(*w)),
            Some(Global::State(s)) => Ok(Operand::State(*s)),
            None => Err(self.lex.error(format!("there is no weight or state @{name}"))),
        }
    }

    fn attrs(&mut self) -> Result<AttrList, Error> {
        let mut list = AttrList::new();
        if !self.lex.eat('{') {
            return Ok(list);
        }
        while !self.lex.eat('}') {
            let name = self.lex.word("an attribute")?;
            let text = if self.lex.eat('=') { self.lex.attr_text()? } else { String::new() };
            list.push((name, text));
            self.comma_or('}')?;
        }
        Ok(list)
    }

    fn ty(&mut self) -> Result<Type, Error> {
        let dtype = self.lex.word("an element type")?.parse().map_err(|e: String| self.lex.error(e))?;
        self.lex.punct('[')?;
        let mut dims = Vec::new();
        while !self.lex.eat(']') {
            let word = self.lex.word("a dimension")?;
            dims.push(if word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                Dim::Named(word.into())
            } else {
                Dim::Fixed(word.parse().map_err(|_| self.lex.error(format!("`{word}` is not a size")))?)
            });
            self.comma_or(']')?;
        }
        let layout =
            if let Token::Global(_) = self.lex.peek() { Some(self.lex.global("a layout")?.into()) } else { None };
        Ok(Type { dtype, dims, layout })
    }

    fn ty_and_slot(&mut self) -> Result<(Type, Option<u64>), Error> {
        let ty = self.ty()?;
        if self.lex.peek() != &Token::Word("at") {
            return Ok((ty, None));
        }
        self.lex.keyword("at")?;
        let word = self.lex.word("an offset")?;
        let slot = word.parse().map_err(|_| self.lex.error(format!("`{word}` is not an offset")))?;
        Ok((ty, Some(slot)))
    }

    fn comma_or(&mut self, close: char) -> Result<(), Error> {
        if self.lex.eat(',') || self.lex.peek() == &Token::Punct(close) {
            Ok(())
        } else {
            Err(self.lex.error(format!("expected `,` or `{close}`")))
        }
    }
}
