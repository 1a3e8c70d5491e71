//! A file system that somebody else has a hold of, too.

use std::sync::Arc;

use crate::file_system::{
    Context, Creation, Data, FileSystem, Gone, Handle, How, NameChange, NodeId, Opened, Opening, Sync, Xattr,
};
use crate::{Entry, Listing, Name, Result, SetAttributes, Stat, Statistics};

impl<T: FileSystem + ?Sized> FileSystem for Arc<T> {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        (**self).entry(context, parent, name, how)
    }

    fn names(&self, context: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        (**self).names(context, parent, change)
    }

    fn attributes(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        (**self).attributes(context, node, handle, change)
    }

    fn open(&self, context: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        (**self).open(context, node, opening)
    }

    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        (**self).create(context, parent, name, creation)
    }

    fn data(&self, context: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        (**self).data(context, node, handle, act)
    }

    fn list(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        (**self).list(context, node, handle, cookie, listing)
    }

    fn read_link(&self, context: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        (**self).read_link(context, node)
    }

    fn xattr(&self, context: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        (**self).xattr(context, node, act)
    }

    fn statistics(&self, context: &Context<'_>, node: NodeId) -> Result<Statistics> {
        (**self).statistics(context, node)
    }

    fn sync(&self, context: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        (**self).sync(context, node, what)
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        (**self).let_go(node, gone);
    }
}
